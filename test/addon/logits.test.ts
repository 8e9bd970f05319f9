/** The base model's logits against libllama's on the same file, for every architecture and weight type. */
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { type Engine, loadModel } from '../../addon/index.ts';
import { type ReferenceSequence, reference } from '../../loadtest/bench/libllama.ts';
import { f32, type TensorType, writeGguf } from '../support/gguf-writer.ts';
import {
  describeTinyModel,
  TINY_ARCHITECTURES,
  type TinyModel,
  type TinyShape,
  tinyMetadata,
  tinyTensors,
  writeTinyModel,
} from '../support/tiny-models.ts';
import { agreement, ENGINE, forward, quantisedRowsStandAlone, randomTokens, temporaryFolder } from './rig.ts';

const folder = temporaryFolder();
afterAll(folder.remove);

/** Short, and long enough that attention crosses many tiles and the sliding window of 16 has moved far. */
const LENGTHS = [40, 333];
const ODD_CHUNKS = [7, 13, 1, 64, 3, 1, 1, 29, 1];

/** Heads of both sizes for every way of turning them; a number of query heads per key head that is no power of two. */
const OTHER_HEADS: Partial<Record<string, Partial<TinyShape>>> = {
  llama: { heads: 6, kvHeads: 2, headDim: 64 },
  gemma3: { heads: 8, kvHeads: 2, headDim: 32 },
};

function ask(tiny: TinyModel, options: Partial<Parameters<typeof reference>[0]> = {}): ReferenceSequence[] {
  const sequences = LENGTHS.map((length, i) => [...randomTokens(length, tiny.vocabulary, i + 1)]);
  return [...reference({ modelPath: tiny.path, sequences, ...options })];
}

function withEngine<T>(
  path: string,
  options: { exact?: boolean; kvType?: 'f16' | 'f32' },
  use: (engine: Engine) => T,
): T {
  const model = loadModel({ path, device: 'cpu', exact: options.exact ?? false });
  const engine = model.createEngine({ ...ENGINE, kvType: options.kvType ?? 'f16' });
  try {
    return use(engine);
  } finally {
    engine.close();
    model.close();
  }
}

const shapes = TINY_ARCHITECTURES.flatMap((architecture) => {
  const other = OTHER_HEADS[architecture];
  return [{ architecture, heads: {} as Partial<TinyShape> }, ...(other ? [{ architecture, heads: other }] : [])];
});
const cases = shapes.flatMap(({ architecture, heads }) =>
  (['f32', 'f16', 'q8_0', 'q4_0', 'q4_1'] as const).map((type) => ({
    name: `${architecture}${heads.headDim ? ` with heads of ${heads.headDim}` : ''}, ${type}`,
    architecture,
    heads,
    type,
  })),
);

/** Mean KL against libllama without its half-precision attention kernel, in nats; measured values are a tenth of these or less. */
const LIMITS: Record<string, number> = { f32: 1e-8, f16: 5e-6 };
/** ggml takes GELU from a table of float16 numbers, the fused mode computes it: in a gemma3 the nearer to the model's float32. */
const GELU_LIMIT = 1e-6;
const limitOf = (architecture: string, type: string): number | undefined =>
  architecture === 'gemma3' && type === 'f32' ? GELU_LIMIT : LIMITS[type];

describe.each(cases)('$name', ({ name, architecture, heads, type }) => {
  const tiny = writeTinyModel(architecture, join(folder.path, `${name}.gguf`), { type: type as TensorType, ...heads });

  test('exact mode has the very bytes of libllama', () => {
    const expected = ask(tiny);
    withEngine(tiny.path, { exact: true }, (engine) => {
      for (const { tokens, logits } of expected) {
        expect(agreement(logits, forward(engine, tokens))).toMatchObject({ equal: tokens.length, rows: tokens.length });
      }
    });
  });

  test('fused mode agrees with libllama to rounding', () => {
    const expected = ask(tiny, { flash: 'off', kv: 'f32' });
    withEngine(tiny.path, { kvType: 'f32' }, (engine) => {
      const actual = expected.map(({ tokens }) => forward(engine, tokens));
      const limit = limitOf(architecture, type);
      if (limit !== undefined) {
        for (const [i, e] of expected.entries()) {
          expect(agreement(e.logits, actual[i] as Float32Array[]).mean).toBeLessThan(limit);
        }
        return;
      }
      // Products with quantised weights round the activations to 8 bits, so a difference in the last bit of a float becomes
      // one of a whole step. libllama differs from itself by as much when its attention adds in another order.
      const itself = ask(tiny, { flash: 'on' });
      for (const [i, e] of expected.entries()) {
        const noise = agreement(e.logits, (itself[i] as ReferenceSequence).logits);
        const ours = agreement(e.logits, actual[i] as Float32Array[]);
        expect(noise.mean).toBeGreaterThan(1e-5);
        expect(ours.mean).toBeLessThan(1.5 * noise.mean);
      }
    });
  });

  test('steps of any size fill the cache alike', () => {
    const tokens = randomTokens(333, tiny.vocabulary, 2);
    withEngine(tiny.path, {}, (engine) => {
      const whole = forward(engine, tokens);
      const chunked = agreement(whole, forward(engine, tokens, { chunks: ODD_CHUNKS }));
      const isFloat = type === 'f32' || type === 'f16';
      expect(chunked.mean).toBeLessThan(isFloat ? 5e-6 : 2e-3);
      if (!isFloat && quantisedRowsStandAlone()) expect(chunked.equal).toBe(tokens.length);
    });
  });
});

test('the comparison would see a wrong model: other weights, a wider window, another RoPE base', () => {
  const given = { type: 'f32' as const };
  const right = writeTinyModel('gemma3', join(folder.path, 'right.gguf'), given);
  const expected = ask(right, { flash: 'off', kv: 'f32' });
  const distance = (path: string): number =>
    withEngine(path, { kvType: 'f32' }, (engine) => {
      const { tokens, logits } = expected[1] as ReferenceSequence;
      return agreement(logits, forward(engine, tokens)).mean;
    });
  expect(distance(right.path)).toBeLessThan(GELU_LIMIT);
  expect(
    distance(writeTinyModel('gemma3', join(folder.path, 'seed.gguf'), { ...given, seed: 2 }).path),
  ).toBeGreaterThan(1);
  const wider = writeTinyModel('gemma3', join(folder.path, 'wide.gguf'), { ...given, slidingWindow: 17 });
  expect(distance(wider.path)).toBeGreaterThan(1e-4);
  const turned = join(folder.path, 'turned.gguf');
  writeGguf(turned, {
    metadata: { ...tinyMetadata(right), 'gemma3.rope.freq_base_swa': f32(9e3) },
    tensors: tinyTensors(right, given),
  });
  expect(distance(turned)).toBeGreaterThan(1e-5);
});

test('RoPE frequency factors and linear scaling are applied', () => {
  const path = join(folder.path, 'factors.gguf');
  const tiny = describeTinyModel('llama', path, { type: 'f32' });
  // As Llama 3.1: high frequencies as they are, low ones slower.
  const factors = Float32Array.from({ length: tiny.headDim / 2 }, (_, i) => (i < 6 ? 1 : 1 + (i - 5) * 0.7));
  const write = (withFactors: boolean, scaling: object): void =>
    writeGguf(path, {
      metadata: { ...tinyMetadata(tiny), ...scaling },
      tensors: [
        ...tinyTensors(tiny),
        ...(withFactors
          ? [{ name: 'rope_freqs.weight', shape: [factors.length], type: 'f32' as const, values: factors }]
          : []),
      ],
    });
  const linear = {
    'llama.rope.scaling.type': { type: 'string', value: 'linear' },
    'llama.rope.scaling.factor': f32(4),
  };
  write(false, {});
  const plain = ask(tiny, { flash: 'off', kv: 'f32' });
  for (const [withFactors, scaling] of [
    [true, {}],
    [false, linear],
    [true, linear],
  ] as const) {
    write(withFactors, scaling);
    const expected = ask(tiny, { flash: 'off', kv: 'f32' });
    expect(agreement(plain[1]?.logits ?? [], expected[1]?.logits ?? []).mean).toBeGreaterThan(1e-3);
    withEngine(path, { kvType: 'f32' }, (engine) => {
      for (const { tokens, logits } of expected) {
        expect(agreement(logits, forward(engine, tokens)).mean).toBeLessThan(1e-8);
      }
    });
  }
});

test('hidden states are the same whichever rows ask for them, and give the logits', () => {
  const tiny = writeTinyModel('llama', join(folder.path, 'hidden.gguf'), { type: 'f32' });
  const tokens = randomTokens(20, tiny.vocabulary, 9);
  const count = tokens.length;
  withEngine(tiny.path, {}, (engine) => {
    const step = (outputs: number[], wantHidden: boolean): Float32Array => {
      engine.trimSequence(0, 0);
      const result = engine.step({
        tokens,
        positions: Int32Array.from(tokens, (_, i) => i),
        sequences: new Int32Array(count),
        slots: new Int32Array(count).fill(-1),
        outputs: Int32Array.from(outputs),
        samplers: new Int32Array(outputs.length).fill(-1),
        wantHidden,
        wantLogits: !wantHidden,
      });
      return (wantHidden ? result.hidden : result.logits) as Float32Array;
    };
    const all = step([...tokens.keys()], true);
    expect(all.length).toBe(count * tiny.embedding);
    const some = step([3, 19], true);
    const from = (row: number) => all.subarray(row * tiny.embedding, (row + 1) * tiny.embedding);
    const difference = Math.max(
      ...some.map((x, i) => Math.abs(x - (i < tiny.embedding ? from(3) : from(19))[i % tiny.embedding]!)),
    );
    expect(difference).toBeLessThan(1e-4);
    const output = tinyTensors(tiny).find((t) => t.name === 'output.weight')!.values;
    const logits = step([19], false);
    for (const token of [0, 7, tiny.vocabulary - 1]) {
      const row = output.subarray(token * tiny.embedding, (token + 1) * tiny.embedding);
      const product = row.reduce((sum, w, i) => sum + w * (from(19)[i] as number), 0);
      expect(logits[token]).toBeCloseTo(product, 3);
    }
  });
});

/** Exact mode: the very bytes of libllama, adapters included; in mixed steps the same to rounding. */
import { existsSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { type AdapterTensorPair, type Engine, loadModel, type Model, type Target } from '../../addon/index.ts';
import { writeLoraGguf } from '../../daemon/adapters/export/lora-gguf.ts';
import { readGgufLora } from '../../daemon/adapters/gguf-lora.ts';
import { AdapterRegistry } from '../../daemon/adapters/registry.ts';
import { type ReferenceSequence, reference } from '../../loadtest/bench/libllama.ts';
import { qualityPrompts } from '../../loadtest/bench/prompts.ts';
import { argmax } from '../../loadtest/bench/stats.ts';
import { defaultModelPath, SKIP_REASON } from '../support/model.ts';
import { TINY_ARCHITECTURES, type TinyModel, writeTinyModel } from '../support/tiny-models.ts';
import {
  type AdapterChoice,
  agreement,
  batchOf,
  ENGINE,
  errorCode,
  forward,
  randomTokens,
  rowsOf,
  temporaryFolder,
  writeLora,
} from './rig.ts';

const folder = temporaryFolder();
afterAll(folder.remove);

/** KL in nats by which an adapter must move the base at least, or leaving it out would not be seen. */
const EFFECT = 2e-2;
/** ggml's threads wait for each other spinning: on a busy machine two take ten times as long as one. */
const THREADS = 1;

async function withExact<T>(
  path: string,
  use: (engine: Engine, model: Model) => T | Promise<T>,
  kvType: 'f16' | 'f32' = 'f16',
): Promise<T> {
  const model = loadModel({ path, device: 'cpu', threads: THREADS, exact: true });
  const engine = model.createEngine({ ...ENGINE, kvType });
  try {
    return await use(engine, model);
  } finally {
    engine.close();
    model.close();
  }
}

/** Puts the adapter of `file` into a slot. */
async function put(model: Model, engine: Engine, slot: number, file: Uint8Array, pairs: AdapterTensorPair[]) {
  const image = await model.buildAdapter(file, pairs);
  engine.setSlot(slot, image);
  image.release();
}

/** Greedy continuation of what the sequence 0 holds, beginning with `next`. */
function continueGreedily(engine: Engine, next: number, count: number, position: number, slot: number): number[] {
  const tokens = [next];
  while (tokens.length < count) {
    const at = position + tokens.length - 1;
    const step = batchOf([{ sequence: 0, slot, tokens: [tokens.at(-1) as number], position: at }]);
    tokens.push(argmax(rowsOf(engine.step(step))[0] as Float32Array));
  }
  return tokens;
}

/** Prompt and greedy tokens under an adapter against what libllama gave; returns how far the adapter moved the base. */
function expectSame(engine: Engine, slot: number, expected: ReferenceSequence): number {
  const { tokens, first, logits, greedy } = expected;
  engine.trimSequence(0, 0);
  const part = { sequence: 0, slot, tokens, position: 0 };
  const all = batchOf([part]);
  const step = first === 0 ? all : { ...all, outputs: all.outputs.slice(first), samplers: all.samplers.slice(first) };
  const rows = rowsOf(engine.step(step));
  expect(agreement(logits, rows)).toMatchObject({ equal: logits.length, rows: tokens.length - first, mean: 0 });
  const best = argmax(rows.at(-1) as Float32Array);
  expect(continueGreedily(engine, best, greedy.length, tokens.length, slot)).toEqual([...greedy]);
  engine.trimSequence(0, 0);
  return agreement(logits, forward(engine, tokens).slice(first)).mean;
}

const CHOICES: (AdapterChoice & { dtype: 'f32' | 'f16' | 'bf16' })[] = [
  { rank: 8, seed: 11, dtype: 'f32' },
  { rank: 3, seed: 12, dtype: 'f16', targets: ['attn_q', 'attn_v', 'ffn_down'] },
  { rank: 16, seed: 13, dtype: 'bf16', targets: ['attn_k', 'attn_output', 'ffn_gate', 'ffn_up'] },
];

/** Writes a GGUF LoRA whose weights are of the type asked for. */
async function writeTyped(path: string, tiny: TinyModel, model: Model, choice: (typeof CHOICES)[number]) {
  const { pairs } = writeLora(`${path}.f32`, tiny, choice);
  const file = await open(`${path}.f32`);
  try {
    const { chunks } = writeLoraGguf({
      file,
      base: model.info,
      pairs,
      format: 'gguf',
      name: 'a',
      baseName: '',
      dtype: choice.dtype,
    });
    const parts: Uint8Array[] = [];
    for await (const chunk of chunks) parts.push(chunk);
    writeFileSync(path, Buffer.concat(parts));
  } finally {
    await file.close();
  }
  return readGgufLora(path, model.info).pairs;
}

describe.each(
  TINY_ARCHITECTURES.flatMap((architecture) => (['f32', 'q4_1'] as const).map((type) => ({ architecture, type }))),
)('$architecture, $type', ({ architecture, type }) => {
  const tiny = writeTinyModel(architecture, join(folder.path, `${architecture}-${type}.gguf`), { type });
  // Several tokens of answer, so that the last block computes fewer rows than the others.
  const prompts = [41, 7].map((length) => [...randomTokens(length, tiny.vocabulary, length)]);

  // The type of the base does not touch the adapter's own operations: all of them over float32 weights, one over others.
  test.each(type === 'f32' ? CHOICES : CHOICES.slice(0, 1))(
    'an adapter of rank $rank in $dtype has the very bytes of libllama',
    async (choice) => {
      await withExact(tiny.path, async (engine, model) => {
        const loraPath = join(folder.path, 'adapter.gguf');
        const pairs = await writeTyped(loraPath, tiny, model, choice);
        const image = await model.loadAdapter(loraPath, pairs);
        engine.setSlot(2, image);
        image.release();
        for (const last of choice.rank === 8 ? [0, 2] : [0]) {
          for (const one of reference({
            modelPath: tiny.path,
            sequences: prompts,
            loraPath,
            greedy: 5,
            last,
            threads: THREADS,
          })) {
            expect(expectSame(engine, 2, one)).toBeGreaterThan(EFFECT);
          }
        }
      });
    },
  );

  test('rows of a mixed step are what each is alone, to rounding; those of the base keep their bytes', async () => {
    await withExact(
      tiny.path,
      async (engine, model) => {
        const made = CHOICES.map((choice) => writeLora(join(folder.path, 'mixed.gguf'), tiny, choice));
        for (const [slot, { file, pairs }] of made.entries()) await put(model, engine, slot, file, pairs);
        const jobs = [1, -1, 0, 2, 0, -1, 1].map((slot, i) => ({
          sequence: i,
          slot,
          tokens: randomTokens(5 + 3 * i, tiny.vocabulary, 70 + i),
          position: 0,
        }));
        const alone = jobs.map((job) => forward(engine, job.tokens, { slot: job.slot }));
        const base = jobs.map((job) => forward(engine, job.tokens));
        // The same step without any adapter: what adapters of others leave untouched.
        const plain = rowsOf(engine.step(batchOf(jobs.map((job) => ({ ...job, slot: -1 })))));
        for (const { sequence } of jobs) engine.trimSequence(sequence, 0);
        const mixed = rowsOf(engine.step(batchOf(jobs)));
        // Inputs of quantised weights are rounded to 8 bits, which makes steps of what was a last bit.
        const limit = type === 'f32' ? 1e-6 : 6e-3;
        let at = 0;
        for (const [i, { slot, tokens }] of jobs.entries()) {
          const rows = mixed.slice(at, at + tokens.length);
          expect(agreement(alone[i] as Float32Array[], rows).mean).toBeLessThan(limit);
          if (slot < 0) {
            expect(agreement(plain.slice(at, at + tokens.length), rows).equal).toBe(tokens.length);
          } else {
            expect(agreement(base[i] as Float32Array[], rows).mean).toBeGreaterThan(EFFECT);
          }
          at += tokens.length;
        }
      },
      'f32',
    );
  });
});

test('a prompt longer than a step, read in pieces of 512 rows, has the very bytes of libllama', async () => {
  const tiny = writeTinyModel('gemma3', join(folder.path, 'long.gguf'), { type: 'q4_1', context: 2048 });
  const loraPath = join(folder.path, 'long-lora.gguf');
  const { file, pairs } = writeLora(loraPath, tiny, { rank: 4, seed: 3 });
  await withExact(tiny.path, async (engine, model) => {
    await put(model, engine, 0, file, pairs);
    const sequences = [[...randomTokens(700, tiny.vocabulary, 3)]];
    for (const one of reference({ modelPath: tiny.path, sequences, loraPath, threads: THREADS })) {
      const rows = forward(engine, one.tokens, { slot: 0, chunks: [512] });
      expect(agreement(one.logits, rows)).toMatchObject({ equal: 700, rows: 700 });
    }
  });
});

describe('slots in exact mode', () => {
  const tiny = writeTinyModel('llama', join(folder.path, 'slots.gguf'), { type: 'q8_0' });
  const tokens = randomTokens(9, tiny.vocabulary, 1);
  const lora = (choice: AdapterChoice) => writeLora(join(folder.path, 'slots-lora.gguf'), tiny, choice);

  test('a slot filled anew serves the new adapter from the next step on, and a cleared one none', async () => {
    await withExact(tiny.path, async (engine, model) => {
      const [a, b] = [lora({ rank: 4, seed: 1 }), lora({ rank: 4, seed: 2, targets: ['attn_v' as Target] })];
      await put(model, engine, 0, a.file, a.pairs);
      const old = forward(engine, tokens, { slot: 0 });
      await put(model, engine, 0, b.file, b.pairs);
      const fresh = forward(engine, tokens, { slot: 0 });
      expect(agreement(old, fresh).mean).toBeGreaterThan(EFFECT);
      await put(model, engine, 0, a.file, a.pairs);
      expect(agreement(old, forward(engine, tokens, { slot: 0 })).equal).toBe(tokens.length);
      engine.clearSlot(0);
      expect(errorCode(() => forward(engine, tokens, { slot: 0 }))).toBe('argument_invalid');
    });
  });

  test('an image of the other mode is refused', async () => {
    const { file, pairs } = lora({ rank: 4, seed: 1 });
    const usual = loadModel({ path: tiny.path, device: 'cpu' });
    const foreign = await usual.buildAdapter(file, pairs);
    await withExact(tiny.path, async (engine, model) => {
      const own = await model.buildAdapter(file, pairs);
      expect(errorCode(() => engine.setSlot(0, foreign))).toBe('adapter_invalid');
      const other = usual.createEngine(ENGINE);
      expect(errorCode(() => other.setSlot(0, own))).toBe('adapter_invalid');
      other.close();
    });
    usual.close();
  });
});

const FIXTURES = join(import.meta.dirname, '..', '..', '..', 'shared', 'fixtures', 'adapters');
const modelPath = await defaultModelPath();
const reason = !existsSync(FIXTURES) ? 'the PEFT fixtures are not beside this checkout' : modelPath ? '' : SKIP_REASON;
if (reason) console.info(`skipped in part: ${reason}`);

test.skipIf(reason !== '')('the PEFT adapter in SmolLM2 has the very bytes of its GGUF in libllama', async () => {
  await withExact(modelPath as string, async (engine, model) => {
    const registry = await AdapterRegistry.open({ root: join(folder.path, 'registry'), base: model.info });
    await registry.add({ name: 'e2e', source: join(FIXTURES, 'e2e') });
    const { pairs, file } = await registry.handle('e2e');
    engine.setSlot(0, await model.loadAdapter(file, pairs));
    const asked = {
      modelPath: modelPath as string,
      sequences: qualityPrompts.slice(0, 3),
      greedy: 8,
      threads: THREADS,
    };
    for (const one of reference({ ...asked, loraPath: join(FIXTURES, 'e2e.gguf') })) {
      expect(expectSame(engine, 0, one)).toBeGreaterThan(EFFECT);
    }
  });
});

/** LoRA adapters in the default mode against libllama's own LoRA (exact.test.ts has the exact mode): subsets of the targets, several ranks, every architecture. */
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { type AdapterTensorPair, loadModel, TARGETS, type Target } from '../../addon/index.ts';
import { type ReferenceSequence, reference } from '../../loadtest/bench/libllama.ts';
import { TINY_ARCHITECTURES, type TinyModel, writeTinyModel } from '../support/tiny-models.ts';
import { type AdapterChoice, agreement, ENGINE, forward, randomTokens, temporaryFolder, writeLora } from './rig.ts';

const folder = temporaryFolder();
afterAll(folder.remove);

/** libllama keeps adapters in float32 where the file has them so; our slots hold float16. The difference this makes: 1e-7. */
const LIMIT = 1e-6;

interface Compared {
  against: ReturnType<typeof agreement>;
  /** How far the adapter takes the model from its base: what the comparison would show if the adapter were left out. */
  effect: number;
}

async function compare(tiny: TinyModel, choice: AdapterChoice): Promise<Compared> {
  const loraPath = join(folder.path, 'adapter.gguf');
  const { file, pairs } = writeLora(loraPath, tiny, choice);
  const tokens = [...randomTokens(70, tiny.vocabulary, 5)];
  const [expected] = [
    ...reference({
      modelPath: tiny.path,
      sequences: [tokens],
      loraPath,
      flash: 'off',
      kv: 'f32',
    }),
  ] as [ReferenceSequence];
  const model = loadModel({ path: tiny.path, device: 'cpu' });
  const engine = model.createEngine({ ...ENGINE, kvType: 'f32' });
  try {
    engine.setSlot(3, await model.buildAdapter(file, pairs));
    const against = agreement(expected.logits, forward(engine, expected.tokens, { slot: 3, chunks: [33, 1, 20] }));
    const effect = agreement(expected.logits, forward(engine, expected.tokens)).mean;
    return { against, effect };
  } finally {
    engine.close();
    model.close();
  }
}

const SUBSETS: Record<string, readonly Target[]> = {
  'all targets': TARGETS,
  'q and v': ['attn_q', 'attn_v'],
  k: ['attn_k'],
  'attention output': ['attn_output'],
  'gate and down': ['ffn_gate', 'ffn_down'],
  up: ['ffn_up'],
};

describe.each(TINY_ARCHITECTURES)('%s', (architecture) => {
  const tiny = writeTinyModel(architecture, join(folder.path, `${architecture}.gguf`), { type: 'f32' });

  test.each(Object.entries(SUBSETS))('an adapter on %s is applied as libllama applies it', async (_, targets) => {
    const { against, effect } = await compare(tiny, { rank: 8, seed: 11, targets });
    expect(against.mean).toBeLessThan(LIMIT);
    expect(effect).toBeGreaterThan(100 * LIMIT);
  });

  test.each([1, 3, 16, 64])('rank %i', async (rank) => {
    const { against, effect } = await compare(tiny, { rank, seed: rank, strength: 40 / Math.sqrt(rank) });
    expect(against.mean).toBeLessThan(LIMIT);
    expect(effect).toBeGreaterThan(100 * LIMIT);
  });
});

test('float16 and bfloat16 adapters and the order of PEFT rows give what float32 and GGUF order give', async () => {
  const tiny = writeTinyModel('llama', join(folder.path, 'types.gguf'), { type: 'f32' });
  const { file, pairs } = writeLora(join(folder.path, 'types-lora.gguf'), tiny, { rank: 4, seed: 3 });
  const model = loadModel({ path: tiny.path, device: 'cpu' });
  const engine = model.createEngine({ ...ENGINE, kvType: 'f32' });
  const tokens = randomTokens(30, tiny.vocabulary, 2);
  const logits = async (bytes: Uint8Array, of: AdapterTensorPair[]): Promise<Float32Array[]> => {
    engine.setSlot(0, await model.buildAdapter(bytes, of));
    return forward(engine, tokens, { slot: 0 });
  };
  const values = (pair: AdapterTensorPair, half: 'a' | 'b'): Float32Array => {
    const shape = tiny.targets[pair.target];
    const count = pair.rank * (half === 'a' ? shape.in : shape.out);
    return new Float32Array(
      file.buffer.slice(file.byteOffset + pair[half].offset, file.byteOffset + pair[half].offset + count * 4),
    );
  };
  const expected = await logits(file, pairs);
  const { encodeValues } = await import('../support/gguf-writer.ts');
  for (const dtype of ['f16', 'bf16'] as const) {
    const chunks: Buffer[] = [Buffer.alloc(1)]; // odd offsets must be fine
    let offset = 1;
    const put = (data: Float32Array): number => {
      const bytes = encodeValues(dtype, data);
      chunks.push(bytes);
      offset += bytes.length;
      return offset - bytes.length;
    };
    const moved = pairs.map((pair) => ({
      ...pair,
      a: { offset: put(values(pair, 'a')), dtype },
      b: { offset: put(values(pair, 'b')), dtype },
    }));
    const got = agreement(expected, await logits(Buffer.concat(chunks), moved));
    if (dtype === 'f16') expect(got.mean).toBeLessThan(1e-6);
    else expect(got.mean).toBeLessThan(1e-3);
  }
  // PEFT's rows of q and k: within a head first the even rows, then the odd ones.
  const bytes = Buffer.from(file);
  const permuted = pairs.map((pair) => {
    const heads = pair.target === 'attn_q' ? tiny.heads : pair.target === 'attn_k' ? tiny.kvHeads : 0;
    if (heads === 0) return pair;
    const b = values(pair, 'b');
    const size = tiny.headDim;
    for (let row = 0; row < heads * size; row++) {
      const inHead = row % size;
      const from = row - inHead + (inHead < size / 2 ? 2 * inHead : 2 * (inHead - size / 2) + 1);
      for (let r = 0; r < pair.rank; r++)
        bytes.writeFloatLE(b[from * pair.rank + r]!, pair.b.offset + (row * pair.rank + r) * 4);
    }
    return { ...pair, permuteHeads: heads };
  });
  expect(agreement(expected, await logits(bytes, permuted))).toMatchObject({ equal: tokens.length });
  expect(agreement(expected, await logits(bytes, pairs)).mean).toBeGreaterThan(1e-4);
  engine.close();
  model.close();
});

/** Adapters read from their files by the addon itself: the same numbers as from bytes in memory, errors for bad files. */
import { pbkdf2 } from 'node:crypto';
import { mkdirSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeEach, describe, expect, test } from 'vitest';
import { type AdapterImage, type AdapterTensorPair, type Engine, loadModel, type Model } from '../../addon/index.ts';
import { writeTinyModel } from '../support/tiny-models.ts';
import { ENGINE, forward, loraFor, randomTokens, sameBytes, temporaryFolder } from './rig.ts';

const folder = temporaryFolder();
const at = (name: string) => join(folder.path, name);
/** Wide enough that B is converted in several blocks and the file is read in several windows. */
const wide = writeTinyModel('llama', at('wide.gguf'), {
  type: 'f32',
  layers: 2,
  embedding: 256,
  heads: 4,
  kvHeads: 2,
  headDim: 64,
  feedForward: 512,
});
const model: Model = loadModel({ path: wide.path, device: 'cpu' });
const engine: Engine = model.createEngine(ENGINE);
const tokens = randomTokens(20, wide.vocabulary, 3);
afterAll(() => {
  engine.close();
  model.close();
  folder.remove();
});

/** What the model says under an image, which is released. */
function logitsUnder(image: AdapterImage): Float32Array[] {
  engine.setSlot(0, image);
  image.release();
  return forward(engine, tokens, { slot: 0 });
}

function expectSame(a: Float32Array[], b: Float32Array[]): void {
  expect(a).toHaveLength(tokens.length);
  for (const [i, row] of a.entries()) expect(sameBytes(row, b[i] as Float32Array), `row ${i}`).toBe(true);
}

// 33: no block of rows ends where a head ends, none begins where a window begins.
const made = loraFor(wide, { rank: 33, seed: 7 });
const path = at('adapter.gguf');
beforeEach(() => writeFileSync(path, made.file));

test('a file gives the same logits, byte for byte, as its bytes do', async () => {
  expect(made.file.length).toBeGreaterThan(1 << 20);
  const fromBytes = logitsUnder(await model.buildAdapter(made.file, made.pairs));
  expectSame(logitsUnder(await model.loadAdapter(path, made.pairs)), fromBytes);
  expectSame(logitsUnder(await model.loadAdapter(path, made.pairs.toReversed())), fromBytes);
  const base = forward(engine, tokens);
  expect(base.every((row, i) => sameBytes(row, fromBytes[i] as Float32Array))).toBe(false);
});

test('rows in the order of PEFT are put into the order of the base, in whatever blocks they are read', async () => {
  const permuted = Buffer.from(made.file);
  const pairs = made.pairs.map((pair): AdapterTensorPair => {
    const heads = pair.target === 'attn_q' ? wide.heads : pair.target === 'attn_k' ? wide.kvHeads : 0;
    const row = (n: number) => pair.b.offset + n * pair.rank * 4;
    for (let n = 0; n < heads * wide.headDim; n++) {
      const inHead = n % wide.headDim;
      const half = wide.headDim / 2;
      const to = n - inHead + (inHead % 2 === 0 ? inHead / 2 : half + (inHead - 1) / 2);
      made.file.copy(permuted, row(to), row(n), row(n + 1));
    }
    return { ...pair, permuteHeads: heads };
  });
  const expected = logitsUnder(await model.buildAdapter(made.file, made.pairs));
  writeFileSync(path, permuted);
  expectSame(logitsUnder(await model.loadAdapter(path, pairs)), expected);
  const unordered = logitsUnder(await model.loadAdapter(path, made.pairs));
  expect(unordered.every((row, i) => sameBytes(row, expected[i] as Float32Array))).toBe(false);
});

test('what other images left in the memory that is used again does not show', async () => {
  const expected = logitsUnder(await model.loadAdapter(path, made.pairs));
  const others = [33, 33, 30, 28].map((rank, seed) => {
    const { file, pairs } = loraFor(wide, { rank, seed, strength: 90 });
    writeFileSync(at(`other-${seed}`), file);
    return { file: at(`other-${seed}`), pairs };
  });
  for (let round = 0; round < 4; round++) {
    const images = await Promise.all(others.map(({ file, pairs }) => model.loadAdapter(file, pairs)));
    const [image] = await Promise.all([
      model.loadAdapter(path, made.pairs),
      Promise.resolve().then(() => {
        for (const one of images) one.release();
      }),
    ]);
    expectSame(logitsUnder(image), expected);
  }
});

describe('refused, and the next load works:', () => {
  const rejected = async (file: string, pairs = made.pairs): Promise<unknown> => {
    const error = await model.loadAdapter(file, pairs).then(
      () => 'nothing',
      (e: { code: unknown }) => e.code,
    );
    writeFileSync(path, made.file);
    (await model.loadAdapter(path, made.pairs)).release();
    return error;
  };

  test('a file that is not there', async () => {
    expect(await rejected(at('nothing.gguf'))).toBe('ENOENT');
  });

  test('a folder', async () => {
    mkdirSync(at('folder'));
    expect(await rejected(at('folder'))).toBe('argument_invalid');
  });

  test('a file that ends within the last tensor', async () => {
    truncateSync(path, made.file.length - 4 * 33);
    expect(await rejected(path)).toBe('adapter_invalid');
  });

  test('a file that is cut off between the check and the reading', async () => {
    // All threads that could read are busy, so the file shrinks before one does.
    const busy = Array.from({ length: 8 }, () => new Promise((done) => pbkdf2('a', 'b', 200_000, 64, 'sha512', done)));
    const load = rejected(path);
    truncateSync(path, made.file.length / 2);
    expect(await load).toBe('adapter_invalid');
    await Promise.all(busy);
  });

  test.each([Number.NaN, Number.NEGATIVE_INFINITY, 70_000])('a weight of %f', async (value) => {
    for (const half of ['a', 'b'] as const) {
      const bad = Buffer.from(made.file);
      bad.writeFloatLE(value, (made.pairs.at(-1) as AdapterTensorPair)[half].offset + 4 * 5000);
      writeFileSync(path, bad);
      expect(await rejected(path)).toBe('adapter_invalid');
    }
  });

  test('a model that was closed', async () => {
    const other = loadModel({ path: wide.path, device: 'cpu' });
    other.close();
    await expect(other.loadAdapter(path, made.pairs)).rejects.toMatchObject({ code: 'closed' });
  });
});

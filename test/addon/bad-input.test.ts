/** Whatever is wrong with what the addon is given, it says so by code, and works on. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  type AdapterTensorPair,
  type AddonErrorCode,
  type Engine,
  loadModel,
  type Model,
  openVocabulary,
  type SamplerOptions,
  type StepBatch,
} from '../../addon/index.ts';
import { seededRandom } from '../../loadtest/bench/random.ts';
import { u32, writeGguf } from '../support/gguf-writer.ts';
import {
  describeTinyModel,
  type TinyModel,
  tinyMetadata,
  tinyTensors,
  writeTinyModel,
} from '../support/tiny-models.ts';
import { runChild } from './child.ts';
import { agreement, batchOf, errorCode, forward, GREEDY, loraFor, randomTokens, temporaryFolder } from './rig.ts';

const folder = temporaryFolder();
const at = (name: string): string => join(folder.path, name);
let tiny: TinyModel;
let model: Model;
let engine: Engine;
let healthy: Float32Array[];
const tokens = randomTokens(12, 256, 1);

beforeAll(() => {
  tiny = writeTinyModel('llama', at('tiny.gguf'), { type: 'f32' });
  model = loadModel({ path: tiny.path, device: 'cpu' });
  engine = model.createEngine({ kvCells: 64, sequencesMax: 4, batchTokensMax: 32, slots: 2, slotRankMax: 8 });
  healthy = forward(engine, tokens);
});
afterAll(() => {
  engine.close();
  model.close();
  folder.remove();
});

/** The cache is as it was, and the next step computes what it always did. */
function stillWorks(): void {
  expect(engine.kvCellsFree).toBe(engine.kvCells);
  expect(agreement(healthy, forward(engine, tokens))).toMatchObject({ equal: tokens.length });
}

const ints = (...values: number[]): Int32Array => Int32Array.from(values);
const good = (): StepBatch => batchOf([{ sequence: 0, tokens: [1, 2, 3], position: 0 }]);

describe('a step', () => {
  const cases: [string, Partial<StepBatch>, RegExp?][] = [
    ['a token below the vocabulary', { tokens: ints(1, -1, 3) }, /row 1.*token/],
    ['a token beyond the vocabulary', { tokens: ints(1, 2, 1 << 30) }, /row 2.*token/],
    ['a gap in the positions', { positions: ints(0, 1, 3) }, /row 2.*position/],
    ['a position twice', { positions: ints(0, 0, 1) }, /row 1.*position/],
    ['a sequence that does not begin at 0', { positions: ints(1, 2, 3) }, /row 0.*position/],
    ['a negative position', { positions: ints(-1, 0, 1) }],
    ['a sequence that does not exist', { sequences: ints(0, 0, 4) }, /row 2.*sequence/],
    ['a negative sequence', { sequences: ints(-1, 0, 0) }, /row 0.*sequence/],
    ['an empty slot', { slots: ints(-1, 1, -1) }, /row 1.*slot/],
    ['a slot that does not exist', { slots: ints(2, -1, -1) }, /row 0.*slot/],
    ['a slot below −1', { slots: ints(-2, -1, -1) }, /row 0.*slot/],
    ['outputs that do not rise', { outputs: ints(1, 1, 2) }, /rising/],
    ['outputs that fall', { outputs: ints(2, 1, 0) }, /rising/],
    ['an output outside the batch', { outputs: ints(0, 1, 3) }, /rising/],
    ['a negative output', { outputs: ints(-1, 0, 1) }, /rising/],
    ['an unknown sampler', { samplers: ints(-1, -1, 99) }, /sampler 99/],
    ['tokens of another length', { tokens: ints(1, 2) }, /equal lengths/],
    ['samplers of another length', { samplers: ints(-1) }, /equal lengths/],
    [
      'no rows',
      { tokens: ints(), positions: ints(), sequences: ints(), slots: ints(), outputs: ints(), samplers: ints() },
    ],
    ['tokens that are no Int32Array', { tokens: [1, 2, 3] as unknown as Int32Array }],
    ['tokens of 64 bits', { tokens: new BigInt64Array(3) as unknown as Int32Array }],
    ['missing slots', { slots: undefined as unknown as Int32Array }],
  ];
  test.each(cases)('with %s is refused', (_, wrong, message) => {
    const batch = { ...good(), ...wrong };
    expect(errorCode(() => engine.step(batch))).toBe('argument_invalid');
    if (message) expect(() => engine.step(batch)).toThrow(message);
    stillWorks();
  });

  test('with more rows than a step takes is refused', () => {
    const batch = batchOf([{ sequence: 0, tokens: randomTokens(33, 256, 2), position: 0 }]);
    expect(errorCode(() => engine.step(batch))).toBe('argument_invalid');
    stillWorks();
  });

  test('that does not fit into the cache says kv_full and changes nothing', () => {
    const fill = (sequence: number, count: number) =>
      engine.step(batchOf([{ sequence, tokens: randomTokens(count, 256, sequence), position: 0, outputs: 'none' }]));
    fill(1, 30);
    fill(2, 30);
    const batch = batchOf([
      { sequence: 0, tokens: [1, 2], position: 0 },
      { sequence: 1, tokens: [1, 2, 3], position: 30 },
    ]);
    expect(errorCode(() => engine.step(batch))).toBe('kv_full');
    expect([0, 1, 2].map((s) => engine.sequenceLength(s))).toEqual([0, 30, 30]);
    expect(engine.kvCellsFree).toBe(4);
    fill(0, 4);
    expect(engine.kvCellsFree).toBe(0);
    for (const s of [0, 1, 2]) engine.trimSequence(s, 0);
    stillWorks();
  });

  test('whose rows lie in shared or detached memory cannot crash the process', () => {
    const shared = new Int32Array(new SharedArrayBuffer(12));
    try {
      engine.step({ ...good(), tokens: shared });
    } catch {}
    const gone = ints(1, 2, 3);
    structuredClone(gone.buffer, { transfer: [gone.buffer as ArrayBuffer] });
    expect(errorCode(() => engine.step({ ...good(), tokens: gone }))).toBe('argument_invalid');
    engine.trimSequence(0, 0);
    stillWorks();
  });
});

test('sequences, slots and samplers that do not exist are refused', () => {
  const refused: (() => unknown)[] = [
    () => engine.trimSequence(4, 0),
    () => engine.trimSequence(-1, 0),
    () => engine.trimSequence(0, -1),
    () => engine.trimSequence(0, 0.5),
    () => engine.shareSequence(0, 0, 0),
    () => engine.shareSequence(0, 1, 1),
    () => engine.sequenceLength(9),
    () => engine.clearSlot(2),
    () => engine.setSlot(0, {} as never),
    () => engine.setSlot(0, null as never),
    () => engine.acceptTokens(12345, ints(1)),
    () => engine.acceptTokens(0, [1] as never),
    () => model.createEngine({ kvCells: 0, sequencesMax: 1, batchTokensMax: 1, slots: 0, slotRankMax: 1 }),
    () => model.createEngine({ kvCells: 1, sequencesMax: 1, batchTokensMax: 1, slots: -1, slotRankMax: 1 }),
    () => loadModel({ path: '', device: 'cpu' }),
    () => loadModel({ path: tiny.path, device: 'tpu' as never }),
    () => loadModel({ path: tiny.path, device: 'cpu', threads: 0 }),
  ];
  for (const f of refused) expect(errorCode(f), String(f)).toBe('argument_invalid');
  // An occupied destination would lose what it holds.
  engine.step(
    batchOf([
      { sequence: 0, tokens: [1], position: 0 },
      { sequence: 1, tokens: [1], position: 0 },
    ]),
  );
  expect(errorCode(() => engine.shareSequence(0, 1, 1))).toBe('argument_invalid');
  engine.trimSequence(0, 0);
  engine.trimSequence(1, 0);
  const sampler = engine.createSampler(GREEDY);
  expect(errorCode(() => engine.acceptTokens(sampler, ints(1, 1 << 20)))).toBe('argument_invalid');
  engine.freeSampler(sampler);
  engine.freeSampler(sampler);
  stillWorks();
});

test.each<[string, Partial<SamplerOptions>, AddonErrorCode]>([
  ['a temperature below 0', { temperature: -1 }, 'argument_invalid'],
  ['a temperature that is no number', { temperature: Number.NaN }, 'argument_invalid'],
  ['top-p above 1', { topP: 1.1 }, 'argument_invalid'],
  ['a negative top-k', { topK: -1 }, 'argument_invalid'],
  ['a repeat penalty of 0', { repeatPenalty: 0 }, 'argument_invalid'],
  ['a bias on a token that does not exist', { logitBias: [{ token: 1 << 20, bias: 1 }] }, 'argument_invalid'],
  ['an infinite bias', { logitBias: [{ token: 1, bias: Number.POSITIVE_INFINITY }] }, 'argument_invalid'],
  ['a seed of more than 32 bits', { seed: 2 ** 32 }, 'argument_invalid'],
  ['a grammar that is none', { grammar: 'root ::= (' }, 'grammar_invalid'],
  ['a grammar without a root', { grammar: 'leaf ::= "a"' }, 'grammar_invalid'],
  ['a grammar that never ends its recursion', { grammar: 'root ::= root "a"' }, 'grammar_invalid'],
  [
    'an unknown trigger',
    { grammar: 'root ::= "a"', grammarLazy: true, grammarTriggers: [{ type: 77, value: '', token: 0 }] },
    'argument_invalid',
  ],
])('a sampler with %s is refused', (_, wrong, code) => {
  expect(errorCode(() => engine.createSampler({ ...GREEDY, ...wrong }))).toBe(code);
  stillWorks();
});

describe('an adapter', () => {
  const rejected = async (file: Uint8Array, pairs: AdapterTensorPair[]): Promise<AddonErrorCode> => {
    const error = await model.buildAdapter(file, pairs).then(
      () => 'nothing',
      (e: { code: AddonErrorCode }) => e.code,
    );
    stillWorks();
    return error as AddonErrorCode;
  };
  // Values so large that a scale of 60,000 leaves the range of float16.
  const made = () => loraFor(tiny, { rank: 2, seed: 1, strength: 200 });
  const change = (f: (pair: AdapterTensorPair) => Partial<AdapterTensorPair>): AdapterTensorPair[] => {
    const { pairs } = made();
    const first = pairs[0] as AdapterTensorPair;
    return [{ ...first, ...f(first) }, ...pairs.slice(1)];
  };

  test.each([Number.NaN, Number.POSITIVE_INFINITY, 1e6])('with the value %f is refused', async (value) => {
    for (const half of ['a', 'b'] as const) {
      const { file, pairs } = made();
      file.writeFloatLE(value, (pairs[5] as AdapterTensorPair)[half].offset + 8);
      expect(await rejected(file, pairs)).toBe('adapter_invalid');
    }
  });

  test.each<[string, (pair: AdapterTensorPair) => Partial<AdapterTensorPair>, AddonErrorCode]>([
    ['A beyond the end of the file', (p) => ({ a: { ...p.a, offset: 1e12 } }), 'argument_invalid'],
    ['B ending beyond the file', (p) => ({ b: { ...p.b, offset: made().file.length - 4 } }), 'adapter_invalid'],
    ['a rank larger than the file', () => ({ rank: 4096 }), 'adapter_invalid'],
    ['rank 0', () => ({ rank: 0 }), 'argument_invalid'],
    ['a fractional offset', (p) => ({ a: { ...p.a, offset: 0.5 } }), 'argument_invalid'],
    ['a layer that does not exist', () => ({ layer: 3 }), 'argument_invalid'],
    ['an unknown target', () => ({ target: 'lm_head' as never }), 'argument_invalid'],
    ['the same target twice', () => ({ target: 'attn_k' as const }), 'adapter_invalid'],
    ['a scale that is no number', () => ({ scale: Number.NaN }), 'argument_invalid'],
    ['a scale that leaves float16', () => ({ scale: 60000 }), 'adapter_invalid'],
    ['heads that do not divide the width', () => ({ permuteHeads: 7 }), 'adapter_invalid'],
    ['an unknown type', (p) => ({ a: { ...p.a, dtype: 'q8_0' as never } }), 'adapter_invalid'],
  ])('with %s is refused', async (_, f, code) => {
    const file = made().file;
    expect(await rejected(file, change(f))).toBe(code);
  });

  test('of a higher rank than the slots take, released, or built for another model is refused by the slot', async () => {
    const large = loraFor(tiny, { rank: 9, seed: 1 });
    const image = await model.buildAdapter(large.file, large.pairs);
    expect(image.rankMax).toBe(9);
    expect(errorCode(() => engine.setSlot(0, image))).toBe('adapter_invalid');
    image.release();
    image.release();
    expect(errorCode(() => engine.setSlot(0, image))).toBe('closed');

    const otherTiny = writeTinyModel('llama', at('other.gguf'), { type: 'f32', layers: 1, embedding: 64 });
    const other = loadModel({ path: otherTiny.path, device: 'cpu' });
    const small = loraFor(otherTiny, { rank: 2, seed: 1 });
    const foreign = await other.buildAdapter(small.file, small.pairs);
    expect(errorCode(() => engine.setSlot(0, foreign))).toBe('adapter_invalid');
    other.close();
    stillWorks();
  });

  test('so strong that the numbers overflow gives an error for its row only', async () => {
    const { file, pairs } = loraFor(tiny, { rank: 8, seed: 1 });
    for (const pair of pairs) {
      for (let i = 0; i < 8; i++) file.writeFloatLE(60000, pair.a.offset + 4 * i);
      for (let i = 0; i < 64; i++) file.writeFloatLE(i % 2 ? 30000 : -30000, pair.b.offset + 4 * i);
    }
    const image = await model.buildAdapter(file, pairs);
    engine.setSlot(1, image);
    const samplers = [0, 1].map(() => engine.createSampler({ ...GREEDY, temperature: 1, topLogprobs: 2 }));
    const { choices, logits } = engine.step(
      batchOf([
        { sequence: 0, tokens, position: 0, slot: 1, outputs: 'last', sampler: samplers[0] as number },
        { sequence: 1, tokens, position: 0, slot: -1, outputs: 'last', sampler: samplers[1] as number },
      ]),
    );
    const row = (logits as Float32Array).subarray(0, tiny.vocabulary);
    if (row.some((x) => !Number.isFinite(x))) {
      expect(choices[0]).toMatchObject({ token: -1, error: expect.stringMatching(/not a number/) });
    } else expect(choices[0]?.token).toBeGreaterThanOrEqual(0);
    expect(choices[1]?.error).toBeUndefined();
    expect(choices[1]?.token).toBeGreaterThanOrEqual(0);
    for (const sampler of samplers) engine.freeSampler(sampler);
    engine.trimSequence(0, 0);
    engine.trimSequence(1, 0);
    engine.clearSlot(1);
    image.release();
    stillWorks();
  });
});

test('after close everything says closed', async () => {
  const own = loadModel({ path: tiny.path, device: 'cpu' });
  const e = own.createEngine({ kvCells: 8, sequencesMax: 1, batchTokensMax: 8, slots: 1, slotRankMax: 8 });
  const { file, pairs } = loraFor(tiny, { rank: 2, seed: 1 });
  const image = await own.buildAdapter(file, pairs);
  own.close();
  own.close();
  // The engine keeps the weights for as long as it lives.
  e.setSlot(0, image);
  expect(e.step(good()).choices).toHaveLength(3);
  e.close();
  e.close();
  const closed: (() => unknown)[] = [
    () => e.step(good()),
    () => e.setSlot(0, image),
    () => e.kvCellsFree,
    () => e.createSampler(GREEDY),
    () => own.createEngine({ kvCells: 8, sequencesMax: 1, batchTokensMax: 8, slots: 1, slotRankMax: 8 }),
  ];
  for (const f of closed) expect(errorCode(f), String(f)).toBe('closed');
  await expect(own.buildAdapter(file, pairs)).rejects.toMatchObject({ code: 'closed' });
  const vocabulary = openVocabulary(tiny.path);
  vocabulary.close();
  expect(errorCode(() => vocabulary.tokenize('a', { special: false, addBos: false }))).toBe('closed');
});

describe('a model file', () => {
  const write = (name: string, metadata: object, drop: string[] = [], options = {}): string => {
    const described = describeTinyModel('llama', at(name), { type: 'f32', ...options });
    writeGguf(described.path, {
      metadata: { ...tinyMetadata(described), ...metadata } as never,
      tensors: tinyTensors(described).filter((t) => !drop.includes(t.name)),
    });
    return described.path;
  };
  const open = (path: string) => () => loadModel({ path, device: 'cpu' }).close();

  test.each<[string, () => string, AddonErrorCode]>([
    ['that is not there', () => at('missing.gguf'), 'model_invalid'],
    ['that lacks a tensor', () => write('a.gguf', {}, ['blk.1.ffn_up.weight']), 'model_invalid'],
    [
      'of another width than its tensors',
      () => write('b.gguf', { 'llama.embedding_length': u32(96) }),
      'model_invalid',
    ],
    ['with no heads', () => write('c.gguf', { 'llama.attention.head_count': u32(0) }), 'model_invalid'],
    [
      'with a billion heads',
      () => write('d.gguf', { 'llama.attention.head_count': u32(1 << 29), 'llama.attention.head_count_kv': u32(1) }),
      'model_invalid',
    ],
    [
      'with heads of an odd size',
      () => write('e.gguf', { 'llama.attention.key_length': u32(20), 'llama.attention.value_length': u32(20) }),
      'architecture_unsupported',
    ],
    [
      'with heads of no size',
      () => write('f.gguf', { 'llama.attention.key_length': u32(0), 'llama.attention.value_length': u32(0) }),
      'architecture_unsupported',
    ],
    ['with experts', () => write('g.gguf', { 'llama.expert_count': u32(8) }), 'architecture_unsupported'],
    [
      'of an unknown architecture',
      () => write('h.gguf', { 'general.architecture': { type: 'string', value: 'mamba' } }),
      'architecture_unsupported',
    ],
    [
      'with more layers than it says',
      () => write('i.gguf', { 'llama.block_count': u32(2) }),
      'architecture_unsupported',
    ],
    ['with fewer layers than it says', () => write('j.gguf', { 'llama.block_count': u32(4) }), 'model_invalid'],
  ])('%s is refused', (_, path, code) => {
    const file = path();
    expect(errorCode(open(file))).toBe(code);
    stillWorks();
  });

  test('whose tokenizer has more tokens than the model has logits is refused', () => {
    const path = at('short.gguf');
    const described = describeTinyModel('llama', path, { type: 'f32' });
    const rows = described.vocabulary - 32;
    writeGguf(path, {
      metadata: tinyMetadata(described),
      tensors: tinyTensors(described).map((t) =>
        t.name === 'token_embd.weight' || t.name === 'output.weight'
          ? { ...t, shape: [described.embedding, rows], values: t.values.subarray(0, rows * described.embedding) }
          : t,
      ),
    });
    const short = loadModel({ path, device: 'cpu' });
    expect(
      errorCode(() => short.createEngine({ kvCells: 8, sequencesMax: 1, batchTokensMax: 8, slots: 0, slotRankMax: 1 })),
    ).toBe('model_invalid');
    short.close();
  });

  // ggml aborts the process on some files; daemon/models/gguf.ts refuses those before C++ sees them. What it lets through
  // must not crash either, so this runs in a process of its own and tells how it ended.
  test('cut short or full of garbage is refused without crashing', () => {
    const bytes = readFileSync(tiny.path);
    const random = seededRandom(7);
    const files: string[] = [];
    const put = (data: Uint8Array): void => {
      files.push(at(`broken-${files.length}.gguf`));
      writeFileSync(files.at(-1) as string, data);
    };
    for (const length of [0, 3, 4, 16, 24, 100, 5000, bytes.length - 40_000]) put(bytes.subarray(0, length));
    for (let i = 0; i < 12; i++) {
      const broken = Buffer.from(bytes);
      // The header: counts, names, offsets, types.
      for (let k = 0; k < 3; k++) broken[8 + Math.floor(random.next() * 1500)] = Math.floor(random.next() * 256);
      put(broken);
    }
    put(Buffer.from(Array.from({ length: 4096 }, () => Math.floor(random.next() * 256))));
    const child = runChild('open-files.ts', files);
    expect(child.signal, child.stderr.slice(-2000)).toBe(null);
    expect(child.status, child.stderr.slice(-2000)).toBe(0);
    const codes = JSON.parse(child.stdout) as { model: string; vocabulary: string }[];
    expect(codes).toHaveLength(files.length);
    for (const [i, { model: m, vocabulary }] of codes.entries()) {
      expect(['opened', 'model_invalid', 'architecture_unsupported', 'template_invalid', 'refused'], `${i}`).toContain(
        m,
      );
      expect(['opened', 'model_invalid', 'template_invalid', 'refused'], `${i}`).toContain(vocabulary);
    }
    expect(codes.slice(0, 7).every((c) => c.model !== 'opened')).toBe(true);
  });
});

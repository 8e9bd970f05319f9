import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { afterAll, beforeEach, describe, expect, test } from 'vitest';
import { AdapterError } from '../../../daemon/adapters/errors.ts';
import { ADAPTER_LIMITS } from '../../../daemon/adapters/limits.ts';
import { localFiles } from '../../../daemon/adapters/source.ts';
import {
  AdapterStore,
  type AdapterSummary,
  type IncomingFile,
  type StoreOptions,
} from '../../../daemon/adapters/store.ts';
import { cpuMsOf } from '../../support/cost.ts';
import {
  encodeSafetensors,
  type PeftAdapterOptions,
  peftAdapter,
  type SafetensorsInput,
  writePeftAdapter,
} from '../../support/safetensors-writer.ts';
import { describeTinyModel } from '../../support/tiny-models.ts';

const folder = mkdtempSync(join(tmpdir(), 'store-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const base = describeTinyModel('llama', '');
const root = join(folder, 'adapters');
beforeEach(() => rmSync(root, { recursive: true, force: true }));

const openStore = (options: Partial<StoreOptions> = {}): Promise<AdapterStore> =>
  AdapterStore.open({ root, base, ...options });

function uploaded(
  options: PeftAdapterOptions = {},
  change: (tensors: Record<string, SafetensorsInput>) => void = () => {},
): IncomingFile[] {
  const { config, tensors } = peftAdapter(base, options);
  change(tensors);
  return [
    { name: 'adapter_config.json', content: Readable.from([Buffer.from(JSON.stringify(config))]) },
    { name: 'adapter_model.safetensors', content: Readable.from([encodeSafetensors(tensors)]) },
  ];
}

async function add(
  store: AdapterStore,
  files: Iterable<IncomingFile> | AsyncIterable<IncomingFile>,
): Promise<AdapterSummary> {
  const staged = await store.stage(files);
  try {
    return await staged.publish();
  } finally {
    await staged.discard();
  }
}

async function reasonOf(work: Promise<unknown>): Promise<string> {
  try {
    await work;
    return 'accepted';
  } catch (error) {
    if (error instanceof AdapterError) return error.reason;
    throw error;
  }
}

describe('an import', () => {
  test('is there under its digest, with its files as they came', async () => {
    const store = await openStore();
    const { config, tensors } = peftAdapter(base);
    const summary = await add(store, uploaded());
    expect(readdirSync(root)).toEqual([summary.digest]);
    expect(JSON.parse(readFileSync(join(root, summary.digest, 'adapter_config.json'), 'utf8'))).toEqual(config);
    const handle = await store.handle(summary.digest);
    expect(readFileSync(handle.file)).toEqual(encodeSafetensors(tensors));
    expect(handle.pairs).toHaveLength(21);
    expect(await store.summary(summary.digest)).toEqual(summary);
    expect(summary).toMatchObject({ rankMax: 4, format: 'peft', layers: 3, architecture: 'llama' });
  });

  test('is not visible before it is published, and gone when it is discarded', async () => {
    const store = await openStore();
    const staged = await store.stage(uploaded());
    expect(await store.digests()).toEqual([]);
    await staged.discard();
    expect(readdirSync(root)).toEqual([]);
  });

  test('of a folder, with other files in it', async () => {
    const source = join(folder, 'peft');
    writePeftAdapter(source, base);
    writeFileSync(join(source, 'README.md'), '# hello');
    const store = await openStore();
    const fromFolder = await add(store, localFiles(source));
    const fromFile = await add(store, localFiles(join(source, 'adapter_model.safetensors')));
    expect(fromFile.digest).toBe(fromFolder.digest);
    expect(readdirSync(join(root, fromFolder.digest)).sort()).toEqual([
      'adapter.json',
      'adapter_config.json',
      'adapter_model.safetensors',
      'pairs.json',
    ]);
  });

  test('never takes a path from the sender', async () => {
    const store = await openStore();
    const files = uploaded().map((file) => ({ ...file, name: `../../${file.name}` }));
    const { digest } = await add(store, [
      ...files,
      { name: '../../evil.txt', content: Readable.from([Buffer.from('x')]) },
    ]);
    expect(readdirSync(join(root, digest))).toHaveLength(4);
    expect(readdirSync(folder)).not.toContain('evil.txt');
  });
});

describe('the digest', () => {
  const digestOf = async (
    options: PeftAdapterOptions,
    change?: (tensors: Record<string, SafetensorsInput>) => void,
  ): Promise<string> => (await add(await openStore(), uploaded(options, change))).digest;

  test('is of the weights and what scales them, not of the file around them', async () => {
    const reference = await digestOf({});
    const reordered = (tensors: Record<string, SafetensorsInput>): void => {
      for (const [name, tensor] of Object.entries(tensors).reverse()) {
        delete tensors[name];
        tensors[name] = tensor;
      }
    };
    expect(await digestOf({}, reordered)).toBe(reference);
    expect(await digestOf({ innerName: 'default' })).toBe(reference);
    expect(await digestOf({ config: { lora_dropout: 0.5, base_model_name_or_path: 'x/y' } })).toBe(reference);
    expect(await digestOf({ config: { r: 4, lora_alpha: 4, use_rslora: true } })).toBe(reference);
  });

  test('changes with one bit of one weight, with the scale, the targets and the layers', async () => {
    const flipped = (tensors: Record<string, SafetensorsInput>): void => {
      const bytes = Object.values(tensors)[5]?.bytes as Buffer;
      bytes[100] = (bytes[100] as number) ^ 1;
    };
    const zeroed = (tensors: Record<string, SafetensorsInput>): void => {
      for (const tensor of Object.values(tensors)) tensor.bytes.fill(0);
    };
    const digests = [
      await digestOf({}),
      await digestOf({}, flipped),
      await digestOf({ alpha: 9 }),
      await digestOf({ seed: 2 }),
      await digestOf({ dtype: 'F16' }),
      await digestOf({ targets: ['attn_k'] }, zeroed),
      await digestOf({ targets: ['attn_v'] }, zeroed),
      await digestOf({ targets: ['attn_v'], layers: [0] }, zeroed),
      await digestOf({ targets: ['attn_v'], layers: [1] }, zeroed),
    ];
    expect(new Set(digests).size).toBe(digests.length);
  });
});

describe('weights that are no numbers are refused, wherever they are', () => {
  const bits = {
    F32: [0x7fc00000, 0xff800000, 0x47800000],
    F16: [0x7e00, 0xfc00],
    BF16: [0x7fc0, 0xff80, 0x4780],
  } as const;
  for (const dtype of ['F32', 'F16', 'BF16'] as const) {
    test.each(bits[dtype].map((value) => value.toString(16)))(`${dtype} %s`, async (hex) => {
      const value = Number.parseInt(hex, 16);
      for (const place of ['first', 'last']) {
        const poisoned = (tensors: Record<string, SafetensorsInput>): void => {
          const all = Object.values(tensors);
          const bytes = all[place === 'first' ? 0 : all.length - 1]?.bytes as Buffer;
          const size = dtype === 'F32' ? 4 : 2;
          const at = place === 'first' ? 0 : bytes.length - size;
          if (size === 4) bytes.writeUInt32LE(value, at);
          else bytes.writeUInt16LE(value, at);
        };
        expect(await reasonOf(add(await openStore(), uploaded({ dtype }, poisoned)))).toBe('weights_invalid');
      }
    });
  }

  test('also when the header leaves the weights unaligned', async () => {
    const { config, tensors } = peftAdapter(base);
    const third = Object.values(tensors)[3]?.bytes as Buffer;
    third.writeFloatLE(Number.NaN, 8);
    const file = encodeSafetensors(tensors);
    const length = Number(file.readBigUInt64LE(0));
    const shifted = Buffer.concat([file.subarray(0, 8 + length), Buffer.from(' '), file.subarray(8 + length)]);
    shifted.writeBigUInt64LE(BigInt(length + 1), 0);
    const files = [
      { name: 'adapter_config.json', content: Readable.from([Buffer.from(JSON.stringify(config))]) },
      { name: 'adapter_model.safetensors', content: Readable.from([shifted]) },
    ];
    expect(await reasonOf(add(await openStore(), files))).toBe('weights_invalid');
  });
});

describe('what fails leaves nothing behind', () => {
  const check = async (
    files: Iterable<IncomingFile> | AsyncIterable<IncomingFile>,
    options: Partial<StoreOptions> = {},
  ): Promise<string> => {
    const reason = await reasonOf(add(await openStore(options), files));
    expect(readdirSync(root)).toEqual([]);
    return reason;
  };

  test('a sender that breaks off', async () => {
    const [config, weights] = uploaded() as [IncomingFile, IncomingFile];
    const broken = (async function* () {
      for await (const chunk of weights.content) {
        yield chunk.subarray(0, 1000);
        throw new AdapterError('source_unreachable', 'gone');
      }
    })();
    expect(await check([config, { ...weights, content: broken }])).toBe('source_unreachable');
  });

  test('a truncated file', async () => {
    const [config, weights] = uploaded() as [IncomingFile, IncomingFile];
    const bytes = encodeSafetensors(peftAdapter(base).tensors);
    expect(await check([config, { ...weights, content: Readable.from([bytes.subarray(0, -1)]) }])).toBe('corrupt');
  });

  test('a disk that is too small, seen before and while it is written', async () => {
    expect(await check(uploaded(), { freeBytes: async () => 1000 })).toBe('disk_full');
    const create: NonNullable<StoreOptions['create']> = async (path) => {
      const file = await open(path, 'wx');
      let left = 5000;
      return {
        write: (async (chunk: Uint8Array, offset: number, length: number) => {
          left -= length;
          if (left < 0) throw Object.assign(new Error('no space'), { code: 'ENOSPC' });
          return await file.write(chunk, offset, length);
        }) as never,
        sync: () => file.sync(),
        close: () => file.close(),
      };
    };
    expect(await check(uploaded(), { create })).toBe('disk_full');
  });

  test('files that are too many, too large, missing, double or pickled', async () => {
    const [config, weights] = uploaded() as [IncomingFile, IncomingFile];
    const content = (): Readable => Readable.from([Buffer.from('x')]);
    expect(await check([config])).toBe('source_invalid');
    expect(await check([uploaded()[1] as IncomingFile])).toBe('source_invalid');
    expect(await check([])).toBe('source_invalid');
    expect(await check([weights, ...uploaded()])).toBe('source_invalid');
    expect(await check([...uploaded(), { name: 'x.gguf', content: content() }])).toBe('source_invalid');
    expect(await check([uploaded()[0] as IncomingFile, { name: 'adapter_model.bin', content: content() }])).toBe(
      'unsupported',
    );
    expect(await check([{ ...weights, bytes: ADAPTER_LIMITS.fileBytesMax + 1 }])).toBe('too_large');
    const endless = (async function* () {
      for (;;) yield Buffer.alloc(100_000);
    })();
    expect(await check([{ name: 'adapter_config.json', content: endless }])).toBe('too_large');
    const many = Array.from({ length: 40 }, (_, i) => ({ name: `${i}.txt`, content: content() }));
    expect(await check(many)).toBe('too_large');
  });

  test('a path that is not there, a folder without adapter, a pipe that nobody writes to', async () => {
    expect(await check(localFiles(join(folder, 'nowhere')))).toBe('source_invalid');
    const empty = join(folder, 'empty');
    mkdirSync(empty, { recursive: true });
    expect(await check(localFiles(empty))).toBe('source_invalid');
    if (process.platform !== 'win32') {
      const pipe = join(folder, 'pipe.gguf');
      execFileSync('mkfifo', [pipe]);
      expect(await check(localFiles(pipe))).toBe('source_invalid');
    }
  });
});

describe('on the next start', () => {
  test('what an import that was cut off left behind is gone', async () => {
    mkdirSync(join(root, '.import-abc'), { recursive: true });
    writeFileSync(join(root, '.import-abc', 'adapter_model.safetensors'), 'half');
    await openStore();
    expect(readdirSync(root)).toEqual([]);
  });

  test('a file damaged meanwhile is refused, and adding the adapter again mends it', async () => {
    const store = await openStore();
    const { digest } = await add(store, uploaded());
    const { file } = await store.handle(digest);
    writeFileSync(file, readFileSync(file).subarray(0, 2000));
    expect(await reasonOf(store.handle(digest))).toBe('corrupt');
    await add(store, uploaded());
    expect((await store.handle(digest)).pairs).toHaveLength(21);
  });

  test('where the weights lie is known without their header, and the header decides when that is damaged or of another file', async () => {
    const store = await openStore();
    const { digest } = await add(store, uploaded());
    const handle = await store.handle(digest);
    const path = join(root, digest, 'pairs.json');
    const sound = readFileSync(path, 'utf8');
    const table = JSON.parse(sound) as { pairs: unknown[][]; fileBytes: number; digest: string };
    const [first] = table.pairs as [unknown[]];

    // The table is what is read: a scale changed in it shows.
    writeFileSync(path, JSON.stringify({ ...table, pairs: [first.with(3, 17), ...table.pairs.slice(1)] }));
    expect((await store.handle(digest)).pairs[0]?.scale).toBe(17);

    const damaged: Record<string, string | null> = {
      'cut short': sound.slice(0, -10),
      'another file': JSON.stringify({ ...table, fileBytes: table.fileBytes + 1 }),
      'another adapter': JSON.stringify({ ...table, digest: digest.replace(/^./, (c) => (c === '0' ? '1' : '0')) }),
      'a layer too many': JSON.stringify({ ...table, pairs: [first.with(1, 3)] }),
      'beyond the file': JSON.stringify({ ...table, pairs: [first.with(4, table.fileBytes)] }),
      'a negative offset': JSON.stringify({ ...table, pairs: [first.with(6, -8)] }),
      'no rank': JSON.stringify({ ...table, pairs: [first.with(2, 0)] }),
      'no pairs': JSON.stringify({ ...table, pairs: [] }),
      gone: null,
    };
    for (const [what, text] of Object.entries(damaged)) {
      if (text === null) rmSync(path);
      else writeFileSync(path, text);
      expect(await store.handle(digest), what).toEqual(handle);
    }
  });

  test('with another base, adapters of the old one are refused', async () => {
    const { digest } = await add(await openStore(), uploaded());
    const other = await openStore({ base: describeTinyModel('llama', '', { layers: 2 }) });
    expect(await reasonOf(other.handle(digest))).toBe('wrong_base');
  });
});

test('scanning and hashing 10 MB takes a blink', async () => {
  const large = describeTinyModel('llama', '', {
    embedding: 512,
    heads: 16,
    kvHeads: 16,
    feedForward: 1024,
    layers: 10,
  });
  const { config, tensors } = peftAdapter(large, { rank: 32 });
  const bytes = encodeSafetensors(tensors);
  expect(bytes.length).toBeGreaterThan(10_000_000);
  const { digestWeights } = await import('../../../daemon/adapters/weights.ts');
  const { parsePeft } = await import('../../../daemon/adapters/peft.ts');
  const { parseSafetensorsHeader } = await import('../../../daemon/adapters/safetensors.ts');
  const path = join(folder, 'large.safetensors');
  writeFileSync(path, bytes);
  const parsed = parsePeft(Buffer.from(JSON.stringify(config)), parseSafetensorsHeader(bytes, bytes.length), large);
  const file = await open(path, 'r');
  const times: number[] = [];
  for (let i = 0; i < 5; i++) {
    times.push(await cpuMsOf(() => digestWeights(file, bytes.length, parsed, large)));
  }
  await file.close();
  // The promise is 50 ms on a quiet machine; the bound is of processor time, on the slowest of processors.
  expect(Math.min(...times)).toBeLessThan(500);
  console.info(`digest of ${(bytes.length / 1e6).toFixed(1)} MB: ${Math.min(...times).toFixed(1)} ms`);
});

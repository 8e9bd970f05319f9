/** What goes out is what computes here: PEFT folders to the byte, GGUF LoRAs and merged models to the logits, in libllama too. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { loadModel, type Model, TARGETS } from '../../../../addon/index.ts';
import { type ExportContext, type ExportQuery, openExport } from '../../../../daemon/adapters/export/export.ts';
import type { AdapterRegistry } from '../../../../daemon/adapters/registry.ts';
import { readGgufHeader } from '../../../../daemon/models/gguf.ts';
import { reference } from '../../../../loadtest/bench/libllama.ts';
import { agreement, ENGINE, forward, randomTokens } from '../../../addon/rig.ts';
import { type PeftAdapterOptions, writePeftAdapter } from '../../../support/safetensors-writer.ts';
import { type TinyModel, writeTinyModel } from '../../../support/tiny-models.ts';
import { contextFor, untar } from './rig.ts';

const folder = mkdtempSync(join(tmpdir(), 'mf-export-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

interface Rig {
  tiny: TinyModel;
  model: Model;
  registry: AdapterRegistry;
  context: ExportContext;
}

async function openRig(tiny: TinyModel): Promise<Rig> {
  const context = await contextFor(tiny, folder);
  const model = loadModel({ path: tiny.path, device: 'cpu', threads: 1 });
  return { tiny, model, registry: context.registry, context };
}

async function exported(rig: Rig, name: string, query: ExportQuery): Promise<Buffer> {
  const { bytes, chunks, close } = await openExport(name, query, rig.context);
  const parts: Uint8Array[] = [];
  for await (const chunk of chunks) parts.push(chunk);
  await close();
  const all = Buffer.concat(parts);
  expect(all.byteLength).toBe(bytes);
  return all;
}

/** Logits under an adapter of the registry, or of the base. */
async function logits(
  rig: Pick<Rig, 'model' | 'registry'>,
  name: string | null,
  tokens: Int32Array,
): Promise<Float32Array[]> {
  const engine = rig.model.createEngine({ ...ENGINE, kvType: 'f32' });
  try {
    if (name === null) return forward(engine, tokens);
    const { file, pairs } = await rig.registry.handle(name);
    const image = await rig.model.buildAdapter(readFileSync(file), [...pairs]);
    engine.setSlot(0, image);
    return forward(engine, tokens, { slot: 0 });
  } finally {
    engine.close();
  }
}

function logitsOfFile(path: string, tokens: Int32Array): Float32Array[] {
  const model = loadModel({ path, device: 'cpu', threads: 1 });
  const engine = model.createEngine({ ...ENGINE, kvType: 'f32' });
  try {
    return forward(engine, tokens);
  } finally {
    engine.close();
    model.close();
  }
}

const VARIANTS: Record<string, PeftAdapterOptions> = {
  'one rank for all': { rank: 4, alpha: 8 },
  'rank-stabilised': { rank: 3, alpha: 5, config: { use_rslora: true } },
  'float16 on q and v': { dtype: 'F16', targets: ['attn_q', 'attn_v'] },
  bfloat16: { dtype: 'BF16', rank: 2 },
  'another rank and alpha for some': {
    rank: 4,
    dtype: 'F16',
    rankOf: (target, layer) => (target === 'attn_k' ? 2 : layer === 1 && target === 'ffn_up' ? 7 : undefined),
    config: { alpha_pattern: { q_proj: 3, 'layers.1.mlp.down_proj': 11 } },
  },
};

/** Mean KL, nats. Slots hold float16, files may hold float32; what an adapter changes here is a thousand times as much. */
const OURS = 5e-5;
/** Both in float32: only the order of additions differs. */
const FLOAT32 = 1e-9;

describe.each(['llama', 'qwen3'] as const)('%s in float32', (architecture) => {
  let rig: Rig;
  const tokens = randomTokens(40, 256, 3);
  beforeAll(async () => {
    rig = await openRig(writeTinyModel(architecture, join(folder, `${architecture}.gguf`), { type: 'f32' }));
  });
  afterAll(() => rig.model.close());

  async function add(name: string, options: PeftAdapterOptions): Promise<string> {
    const source = join(folder, `${architecture}-${name}`);
    writePeftAdapter(source, rig.tiny, { deviation: 0.2, ...options });
    await rig.registry.add({ name, source, replace: true });
    return source;
  }

  test.each(Object.entries(VARIANTS))('%s: PEFT goes out to the byte as it came in', async (_, options) => {
    const source = await add('a:1', options);
    const files = await untar(await exported(rig, 'a:1', { format: 'peft' }));
    expect([...files.keys()]).toEqual(['a_1/adapter_config.json', 'a_1/adapter_model.safetensors', 'a_1/README.md']);
    for (const file of ['adapter_config.json', 'adapter_model.safetensors'])
      expect(files.get(`a_1/${file}`)?.equals(readFileSync(join(source, file)))).toBe(true);
  });

  test.each(Object.entries(VARIANTS))('%s: a GGUF LoRA computes the same, here and in libllama', async (_, options) => {
    await add('plain', options);
    const path = join(folder, 'lora.gguf');
    writeFileSync(path, await exported(rig, 'plain', { format: 'gguf' }));
    await rig.registry.add({ name: 'back', source: path, replace: true });
    const expected = await logits(rig, 'plain', tokens);
    expect(agreement(expected, await logits(rig, 'back', tokens)).mean).toBeLessThan(OURS);
    const [libllama] = [
      ...reference({ modelPath: rig.tiny.path, sequences: [[...tokens]], loraPath: path, flash: 'off', kv: 'f32' }),
    ];
    expect(agreement(libllama?.logits ?? [], expected).mean).toBeLessThan(OURS);
    expect(agreement(libllama?.logits ?? [], await logits(rig, null, tokens)).mean).toBeGreaterThan(1000 * OURS);
  });

  test.each(Object.entries(VARIANTS))(
    '%s: a merged model computes what base and adapter compute',
    async (_, options) => {
      await add('plain', options);
      const path = join(folder, 'merged.gguf');
      writeFileSync(path, await exported(rig, 'plain', { format: 'merged' }));
      const merged = logitsOfFile(path, tokens);
      expect(agreement(await logits(rig, 'plain', tokens), merged).mean).toBeLessThan(OURS);
      const lora = join(folder, 'lora.gguf');
      writeFileSync(lora, await exported(rig, 'plain', { format: 'gguf' }));
      const libllama = (modelPath: string, loraPath?: string): Float32Array[] => {
        const options = { modelPath, sequences: [[...tokens]], flash: 'off', kv: 'f32' } as const;
        return [...reference({ ...options, ...(loraPath && { loraPath }) })][0]?.logits ?? [];
      };
      const inLibllama = libllama(path);
      expect(agreement(libllama(rig.tiny.path, lora), inLibllama).mean).toBeLessThan(FLOAT32);
      expect(agreement(inLibllama, merged).mean).toBeLessThan(FLOAT32);
      // All metadata is kept, and one note joins it.
      const before = readGgufHeader(rig.tiny.path);
      const after = readGgufHeader(path);
      expect([...after.metadata]).toEqual([...before.metadata, ['modelfactory.merged', expect.anything()]]);
      expect(after.tensors.map(({ name, type, shape }) => [name, type, shape])).toEqual(
        before.tensors.map(({ name, type, shape }) => [name, type, shape]),
      );
    },
  );

  test('GGUF → PEFT → GGUF ends with the bytes it began with', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.record({
          seed: fc.integer({ min: 1, max: 1000 }),
          rank: fc.integer({ min: 1, max: 9 }),
          alpha: fc.integer({ min: 1, max: 64 }),
          dtype: fc.constantFrom('F32' as const, 'F16' as const, 'BF16' as const),
          targets: fc.subarray([...TARGETS], { minLength: 1 }),
          own: fc.option(fc.integer({ min: 1, max: 12 }), { nil: undefined }),
          layers: fc.option(fc.constantFrom([0], [1]), { nil: undefined }),
        }),
        async ({ own, layers, ...options }) => {
          await add('from', {
            ...options,
            ...(layers && { layers }),
            rankOf: (target) => (target === 'attn_v' ? own : undefined),
          });
          const first = await exported(rig, 'from', { format: 'gguf' });
          const path = join(folder, 'from.gguf');
          writeFileSync(path, first);
          const added = await rig.registry.add({ name: 'gguf', source: path, replace: true });
          const unpacked = join(folder, `unpacked-${architecture}`);
          mkdirSync(unpacked, { recursive: true });
          for (const [name, bytes] of await untar(await exported(rig, 'gguf', { format: 'peft' })))
            writeFileSync(join(unpacked, name.replace('gguf/', '')), bytes);
          await rig.registry.add({ name: 'peft', source: unpacked, replace: true });
          const again = await exported(rig, 'peft', { format: 'gguf' });
          writeFileSync(path, again);
          const back = await rig.registry.add({ name: 'again', source: path, replace: true });
          expect(back.digest).toBe(added.digest);
        },
      ),
      { numRuns: 25 },
    );
  });
});

describe('a quantised base', () => {
  const tokens = randomTokens(40, 256, 4);
  test.each(['q8_0', 'q4_0', 'q4_1'] as const)('%s: merged within the error of its type', async (type) => {
    const rig = await openRig(writeTinyModel('llama', join(folder, `${type}.gguf`), { type }));
    const source = join(folder, `for-${type}`);
    writePeftAdapter(source, rig.tiny, { deviation: 0.1 });
    await rig.registry.add({ name: 'q', source });
    const expected = await logits(rig, 'q', tokens);
    const effect = agreement(expected, await logits(rig, null, tokens)).mean;
    const merged = async (query: Omit<ExportQuery, 'format'>): Promise<number> => {
      const path = join(folder, 'merged-q.gguf');
      writeFileSync(path, await exported(rig, 'q', { format: 'merged', ...query }));
      return agreement(expected, logitsOfFile(path, tokens)).mean;
    };
    const errors = { own: await merged({}), f16: await merged({ type: 'f16' }), q8_0: await merged({ type: 'q8_0' }) };
    // Rounded to four bits again, most of the change would be gone.
    expect(errors.own).toBeLessThan(effect / 50);
    expect(errors.q8_0).toBeLessThan(effect / 50);
    rig.model.close();
  });
});

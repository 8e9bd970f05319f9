/**
 * Random LoRA adapters for measuring, as GGUF files: both llama-server and we read those, so both sides serve the same
 * bytes. Also a program: `node --import tsx loadtest/bench/adapters.ts COUNT [--rank 8] [--prefix bench-] [--keep DIR]`
 * writes that many and imports them into a running gateway (MODELFACTORY_URL, MODELFACTORY_KEY).
 */
import { mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import type { AdapterTensorPair, Target } from '../../addon/types.ts';
import { seededRandom } from './random.ts';

/** Shapes of the layers an adapter changes. */
export interface BaseShape {
  architecture: string;
  layers: number;
  /** GGUF tensor name without block and suffix → [in, out]. */
  targets: Record<Target, [number, number]>;
}

export const SMOLLM2_135M: BaseShape = {
  architecture: 'llama',
  layers: 30,
  targets: {
    attn_q: [576, 576],
    attn_k: [576, 192],
    attn_v: [576, 192],
    attn_output: [576, 576],
    ffn_gate: [576, 1536],
    ffn_up: [576, 1536],
    ffn_down: [1536, 576],
  },
};

const ALIGNMENT = 32;
const GGUF = { magic: 0x46554747, version: 3, typeFloat32: 6, typeString: 8, tensorF32: 0 } as const;
/** Small enough that the model keeps talking, large enough that the answer changes. */
const SCALE_A = 0.02;
const SCALE_B = 0.01;

export interface RandomAdapter {
  file: Buffer;
  /** Where the pairs lie in the file, as the addon wants them. */
  pairs: AdapterTensorPair[];
}

/**
 * A GGUF LoRA file: A ~ 0.02·N(0,1) and B ~ 0.01·strength·N(0,1) in float32 on every target of every layer, alpha = 2·rank.
 */
export function randomAdapter(shape: BaseShape, rank: number, seed: number, strength = 1): RandomAdapter {
  const random = seededRandom(seed);
  const tensors: { name: string; ne: [number, number]; scale: number }[] = [];
  for (let layer = 0; layer < shape.layers; layer++) {
    for (const [target, [input, output]] of Object.entries(shape.targets)) {
      // ggml lists the fastest dimension first: A is [rank × in], B is [out × rank], both row-major.
      tensors.push({ name: `blk.${layer}.${target}.weight.lora_a`, ne: [input, rank], scale: SCALE_A });
      tensors.push({ name: `blk.${layer}.${target}.weight.lora_b`, ne: [rank, output], scale: SCALE_B * strength });
    }
  }
  const head: Buffer[] = [];
  const u32 = (v: number) => {
    const b = Buffer.alloc(4);
    b.writeUInt32LE(v);
    head.push(b);
  };
  const u64 = (v: number) => {
    const b = Buffer.alloc(8);
    b.writeBigUInt64LE(BigInt(v));
    head.push(b);
  };
  const text = (s: string) => {
    u64(Buffer.byteLength(s));
    head.push(Buffer.from(s));
  };
  const metadata: [string, string | number][] = [
    ['general.architecture', shape.architecture],
    ['general.type', 'adapter'],
    ['adapter.type', 'lora'],
    ['adapter.lora.alpha', 2 * rank],
  ];
  u32(GGUF.magic);
  u32(GGUF.version);
  u64(tensors.length);
  u64(metadata.length);
  for (const [key, value] of metadata) {
    text(key);
    if (typeof value === 'string') {
      u32(GGUF.typeString);
      text(value);
    } else {
      u32(GGUF.typeFloat32);
      const b = Buffer.alloc(4);
      b.writeFloatLE(value);
      head.push(b);
    }
  }
  let offset = 0;
  const padded = (bytes: number) => Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
  const offsets: number[] = [];
  for (const tensor of tensors) {
    text(tensor.name);
    u32(2);
    u64(tensor.ne[0]);
    u64(tensor.ne[1]);
    u32(GGUF.tensorF32);
    u64(offset);
    offsets.push(offset);
    offset += padded(tensor.ne[0] * tensor.ne[1] * 4);
  }
  const header = Buffer.concat(head);
  const start = padded(header.length);
  const file = Buffer.alloc(start + offset);
  header.copy(file);
  tensors.forEach((tensor, i) => {
    const at = start + (offsets[i] as number);
    const count = tensor.ne[0] * tensor.ne[1];
    // A Buffer's memory is aligned to 8 bytes and every tensor to 32, so the view is legal.
    const values = new Float32Array(file.buffer, file.byteOffset + at, count);
    for (let k = 0; k < count; k++) values[k] = tensor.scale * random.normal();
  });
  const pairs: AdapterTensorPair[] = [];
  let tensor = 0;
  for (let layer = 0; layer < shape.layers; layer++) {
    for (const target of Object.keys(shape.targets) as Target[]) {
      const a = { offset: start + (offsets[tensor++] as number), dtype: 'f32' as const };
      const b = { offset: start + (offsets[tensor++] as number), dtype: 'f32' as const };
      // GGUF stores the rows of q and k in the order the base uses: nothing to permute. alpha / rank = 2.
      pairs.push({ target, layer, rank, scale: 2, a, b, permuteHeads: 0 });
    }
  }
  return { file, pairs };
}

/** Writes a0.gguf … into `folder`; returns the paths. Adapter i depends on seed, rank and i only. */
export function writeRandomAdapters(
  folder: string,
  count: number,
  rank: number,
  seed = 1,
  shape: BaseShape = SMOLLM2_135M,
): string[] {
  mkdirSync(folder, { recursive: true });
  return Array.from({ length: count }, (_, i) => {
    const file = path.join(folder, `a${i}.gguf`);
    writeFileSync(file, randomAdapter(shape, rank, seed * 100_003 + i).file);
    return file;
  });
}

/** Imports a file that lies on the server's machine under a name; an adapter of that name is replaced. */
export async function importAdapter(url: string, key: string, name: string, source: string): Promise<void> {
  const response = await fetch(`${url}/api/adapters`, {
    method: 'POST',
    headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
    body: JSON.stringify({ name, source, replace: true }),
  });
  if (!response.ok)
    throw new Error(`importing ${name}: status ${response.status}: ${(await response.text()).slice(0, 500)}`);
  await response.arrayBuffer();
}

async function program(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      rank: { type: 'string', default: '8' },
      prefix: { type: 'string', default: 'bench-' },
      seed: { type: 'string', default: '1' },
      keep: { type: 'string' },
    },
  });
  const count = Number(positionals[0] ?? '8');
  const rank = Number(values.rank);
  if (!Number.isInteger(count) || count < 1 || !Number.isInteger(rank) || rank < 1)
    throw new Error('COUNT and --rank are positive integers');
  const url = process.env.MODELFACTORY_URL ?? 'http://127.0.0.1:8787';
  const key = process.env.MODELFACTORY_KEY;
  if (!key) throw new Error('set MODELFACTORY_KEY to a key that may add adapters (the admin key does)');
  const folder = values.keep ?? mkdtempSync(path.join(os.tmpdir(), 'adapters-'));
  try {
    const files = writeRandomAdapters(folder, count, rank, Number(values.seed));
    for (const [i, file] of files.entries()) {
      await importAdapter(url, key, `${values.prefix}${i}`, file);
      process.stdout.write(`${values.prefix}${i}: rank ${rank}, ${(statSync(file).size / 2 ** 20).toFixed(1)} MiB\n`);
    }
  } finally {
    if (values.keep === undefined) rmSync(folder, { recursive: true, force: true });
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  program().catch((error: Error) => {
    process.stderr.write(`${error.message}\n`);
    process.exitCode = 1;
  });
}

/**
 * `pairs.json` beside an adapter's weights: where each low-rank pair lies, as found and checked at import, so that a
 * request for an adapter that nobody asked for lately does not wait for the whole header to be read and checked again.
 * It holds for one weights file (by size), one adapter (by digest) and one shape of base; else the header decides.
 */
import { createHash } from 'node:crypto';
import { z } from 'zod';
import type { AdapterTensorPair } from '../../addon/types.ts';
import { TARGETS } from '../../addon/types.ts';
import type { BaseShape } from '../models/inspect.ts';
import { DTYPE_BYTES } from './parsed.ts';

export const PAIRS_FILE = 'pairs.json';

const whole = z.number().int().min(0);
const dtype = z.enum(['f32', 'f16', 'bf16']);
/** One array a pair: a tenth of the text that objects would need. */
const row = z.tuple([
  z.enum(TARGETS),
  /** layer, rank */
  whole,
  whole.min(1),
  z.number(),
  /** A: offset in bytes, type; then B. */
  whole,
  dtype,
  whole,
  dtype,
  /** permuteHeads */
  whole,
]);
const table = z.object({
  version: z.literal(1),
  digest: z.string(),
  fileBytes: whole,
  /** `shapeKey` of the base. */
  base: z.string(),
  pairs: z.array(row).min(1),
});

export interface PairTableKey {
  digest: string;
  /** Size of the weights file. */
  fileBytes: number;
  base: BaseShape;
}

export function encodePairs(pairs: readonly AdapterTensorPair[], key: PairTableKey): string {
  const rows = pairs.map(
    (p): z.output<typeof row> => [
      p.target,
      p.layer,
      p.rank,
      p.scale,
      p.a.offset,
      p.a.dtype,
      p.b.offset,
      p.b.dtype,
      p.permuteHeads,
    ],
  );
  const { digest, fileBytes, base } = key;
  return JSON.stringify({ version: 1, digest, fileBytes, base: shapeKey(base), pairs: rows });
}

/** null: it is damaged, or was made for another file, adapter or base. */
export function decodePairs(text: string, key: PairTableKey): AdapterTensorPair[] | null {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    return null;
  }
  const result = table.safeParse(parsed);
  if (!result.success) return null;
  const { digest, fileBytes, base } = result.data;
  if (digest !== key.digest || fileBytes !== key.fileBytes || base !== shapeKey(key.base)) return null;
  const pairs = result.data.pairs.map(
    ([target, layer, rank, scale, aOffset, aType, bOffset, bType, permuteHeads]): AdapterTensorPair => ({
      target,
      layer,
      rank,
      scale,
      a: { offset: aOffset, dtype: aType },
      b: { offset: bOffset, dtype: bType },
      permuteHeads,
    }),
  );
  return pairs.every((pair) => fits(pair, key)) ? pairs : null;
}

/** C++ reads where it is told, so whatever the text says is held against the file and the base. */
function fits({ target, layer, rank, a, b }: AdapterTensorPair, { base, fileBytes }: PairTableKey): boolean {
  const size = base.targets[target];
  return (
    layer < base.layers &&
    a.offset + rank * size.in * DTYPE_BYTES[a.dtype] <= fileBytes &&
    b.offset + rank * size.out * DTYPE_BYTES[b.dtype] <= fileBytes
  );
}

const keys = new WeakMap<BaseShape, string>();

/** SHA-256, hex, of what decides whether an adapter fits. */
function shapeKey(base: BaseShape): string {
  let key = keys.get(base);
  if (key === undefined) {
    const { architecture, layers, heads, kvHeads, targets, ropePermuted } = base;
    const said = [
      architecture,
      layers,
      heads,
      kvHeads,
      ropePermuted,
      ...TARGETS.map((t) => [targets[t].in, targets[t].out]),
    ];
    key = createHash('sha256').update(JSON.stringify(said)).digest('hex');
    keys.set(base, key);
  }
  return key;
}

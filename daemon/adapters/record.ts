/** `record.json` beside an adapter that was made here: how it came to be. The model card is written from it. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { recipe } from '../training/protocol.ts';
import { ADAPTER_LIMITS } from './limits.ts';
import { RECORD_FILE } from './store.ts';

const sha256 = z.string().regex(/^[0-9a-f]{64}$/);
const loss = z.number().optional();

export const adapterRecord = z.object({
  version: z.literal(1).default(1),
  base: z.object({ id: z.string().max(256), digest: sha256 }),
  recipe: recipe.nullable(),
  dataset: z
    .object({
      digest: sha256,
      examples: z.number().int().min(0),
      tokens: z.number().int().min(0),
      trainedTokens: z.number().int().min(0).optional(),
    })
    .nullable(),
  validation: z.object({ digest: sha256, examples: z.number().int().min(0) }).nullish(),
  metrics: z
    .object({
      step: z.number().int().min(0),
      trainLoss: z.number(),
      trainMeanTokenAccuracy: z.number(),
      validLoss: loss,
      validMeanTokenAccuracy: loss,
      fullValidLoss: loss,
      fullValidMeanTokenAccuracy: loss,
    })
    .nullable(),
  /** The training run's id. */
  run: z.string().max(64).nullable(),
  /** Digest of the adapter that training began from. */
  parent: sha256.nullish(),
  /** Goes into the card as it is. */
  notes: z.record(z.string().max(64), z.string().max(512)).default({}),
});
export type AdapterRecord = z.input<typeof adapterRecord>;
export type ParsedRecord = z.output<typeof adapterRecord>;

/** @throws ZodError: what this process says of itself must be right. */
export function encodeRecord(record: AdapterRecord): string {
  return JSON.stringify(adapterRecord.parse(record), null, 2);
}

/** null: the adapter came from elsewhere, or the file is damaged; the weights do not depend on it. */
export async function readRecord(folder: string): Promise<ParsedRecord | null> {
  try {
    const text = await readFile(join(folder, RECORD_FILE), 'utf8');
    return text.length > ADAPTER_LIMITS.recordBytesMax ? null : adapterRecord.parse(JSON.parse(text));
  } catch {
    return null;
  }
}

/** Sources and marks as users see them: in jobs, at adapters. */
import { z } from '@hono/zod-openapi';
import type { AdapterMarkRow, JobSourceRow } from '../../db/datanet-schema.ts';

export const sourceView = z
  .object({
    role: z.enum(['training', 'validation']),
    file: z.string(),
    datanet: z.string().nullable(),
    version: z.number().nullable(),
    root: z.string().nullable().openapi({ description: 'Merkle root of the version, hex.' }),
    weight: z.number(),
    examples: z.number().nullable().openapi({ description: 'Of an epoch; null until the files are validated.' }),
    digest: z.string().nullable().openapi({
      description:
        'SHA-256 over the leaf hashes of the rows (files: over the SHA-256 of each example as sent), in the order in which they are sent.',
    }),
  })
  .openapi('FineTuningSource');

export function viewOfSource(row: JobSourceRow): z.output<typeof sourceView> {
  return {
    role: row.role,
    file: row.fileId,
    datanet: row.datanetId,
    version: row.version,
    root: row.root,
    weight: row.weight,
    examples: row.examples,
    digest: row.digest,
  };
}

export const markView = z
  .object({
    kind: z.enum(['withdrawal', 'revocation']),
    datanet: z.string(),
    version: z.number().openapi({ description: 'That was trained on.' }),
    rows: z.number().openapi({ description: 'Rows trained on that were withdrawn; 0 with a revocation.' }),
    created_at: z.number(),
  })
  .openapi('AdapterMark');

export function viewOfMark(row: AdapterMarkRow): z.output<typeof markView> {
  return {
    kind: row.kind,
    datanet: row.datanetId,
    version: row.version,
    rows: row.rows,
    created_at: Math.floor(row.createdAt / 1000),
  };
}

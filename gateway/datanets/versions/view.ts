/** A version as the API shows it. */
import { z } from '@hono/zod-openapi';
import type { VersionRow } from '../../db/datanet-schema.ts';
import type { VersionStatistics } from './statistics.ts';

const counts = z.record(z.string(), z.number().int());

const statistics = z.object({
  rows: z.number().int(),
  characters: z.number().int(),
  score_mean: z.number().nullable(),
  contributors: z.number().int(),
  contributions: z.number().int(),
  /** Rows that a model wrote. */
  generated: z.number().int(),
  /** Rows approved by whoever contributed them. */
  self_reviewed: z.number().int(),
  licences: counts,
  languages: counts,
  models: counts,
  /** Of one version only; lists leave it out. */
  by_contributor: z
    .array(z.object({ contributor: z.string(), rows: z.number().int(), generated: z.number().int() }))
    .optional(),
});

export const versionView = z
  .object({
    object: z.literal('datanet.version'),
    datanet: z.string(),
    version: z.number().int(),
    cause: z.enum(['publish', 'withdrawal']),
    /** Of a withdrawal: its reason. */
    notes: z.string(),
    licence: z.string(),
    terms: z.string(),
    rows: z.number().int(),
    added: z.number().int(),
    removed: z.number().int(),
    /** Hex: RFC 6962 over the rows in their order. */
    root: z.string(),
    /** C2SP checkpoint over the same, signed with the Datanet key (GET /api/datanets/vkey). */
    checkpoint: z.string(),
    statistics,
    created_by: z.string(),
    created_at: z.number().int(),
  })
  .openapi('DatanetVersion');

export function viewOfVersion(version: VersionRow, detail: 'whole' | 'listed'): z.output<typeof versionView> {
  const { by_contributor, ...sums } = version.statistics as unknown as VersionStatistics;
  return {
    object: 'datanet.version',
    datanet: version.datanetId,
    version: version.number,
    cause: version.cause,
    notes: version.notes,
    licence: version.licence,
    terms: version.terms,
    rows: version.rows,
    added: version.added,
    removed: version.removed,
    root: version.root,
    checkpoint: version.checkpoint,
    statistics: detail === 'whole' ? { ...sums, by_contributor } : sums,
    created_by: version.createdBy,
    created_at: Math.floor(version.createdAt / 1000),
  };
}

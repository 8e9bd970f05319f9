/** A Datanet as the API shows it. */
import { z } from '@hono/zod-openapi';
import { DATANET_KINDS, type DatanetRow } from '../db/datanet-schema.ts';
import type { Standing, TrainRefusal } from './standing.ts';

const access = z.object({
  can_read: z.boolean(),
  can_contribute: z.boolean(),
  can_govern: z.boolean(),
  /** allowed, or why not. */
  training: z.enum(['allowed', 'not_visible', 'no_version', 'revoked', 'access_required', 'licence_not_accepted']),
  message: z.string(),
});

const summary = z.object({
  id: z.string(),
  object: z.literal('datanet'),
  name: z.string(),
  summary: z.string(),
  tags: z.array(z.string()),
  kind: z.enum(DATANET_KINDS),
  licence: z.string(),
  visibility: z.enum(['public', 'permissioned']),
  state: z.enum(['active', 'revoked']),
  languages: z.array(z.string()),
  owner: z.object({ type: z.enum(['user', 'organization']), id: z.string(), name: z.string() }),
  /** Newest published version; 0: none yet. */
  version: z.number().int(),
  rows: z.number().int(),
  created_at: z.number().int(),
  updated_at: z.number().int(),
});
export const datanetSummary = summary.openapi('DatanetSummary');
export const datanetView = summary.extend({ description: z.string(), terms: z.string(), access }).openapi('Datanet');

export function summaryOf(row: DatanetRow, names: ReadonlyMap<string, string>): z.output<typeof summary> {
  const id = row.ownerUser ?? row.ownerOrganization ?? '';
  return {
    id: row.id,
    object: 'datanet',
    name: row.name,
    summary: row.summary,
    tags: row.tags,
    kind: row.kind,
    licence: row.licence,
    visibility: row.visibility,
    state: row.state,
    languages: row.languages,
    owner: { type: row.ownerUser === null ? 'organization' : 'user', id, name: names.get(id) ?? '' },
    version: row.version,
    rows: row.rows,
    created_at: Math.floor(row.createdAt / 1000),
    updated_at: Math.floor(row.updatedAt / 1000),
  };
}

const TRAINING: Record<TrainRefusal | 'allowed', string> = {
  allowed: 'You may train on its versions.',
  not_visible: 'It is not visible to you.',
  no_version: 'Nothing of it is published yet.',
  revoked: 'Its owner revoked it: nothing new is trained on it.',
  access_required: 'It is permissioned: ask for access with a purpose.',
  licence_not_accepted: 'Accept its licence and terms first.',
};

export function viewOf(
  row: DatanetRow,
  names: ReadonlyMap<string, string>,
  standing: Standing,
): z.output<typeof datanetView> {
  const training = standing.training ?? 'allowed';
  const may = [
    standing.governs ? 'You govern it.' : null,
    standing.reads ? 'You may read it.' : null,
    standing.contributes ? 'You may contribute.' : null,
    TRAINING[training],
  ];
  return {
    ...summaryOf(row, names),
    description: row.description,
    terms: row.terms,
    access: {
      can_read: standing.reads,
      can_contribute: standing.contributes,
      can_govern: standing.governs,
      training,
      message: may.filter((sentence) => sentence !== null).join(' '),
    },
  };
}

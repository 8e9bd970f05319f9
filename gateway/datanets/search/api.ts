/** GET /api/datanets/{id}/search?q= */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import { pageOf } from '../../http/pages.ts';
import { parseWith } from '../../http/validate.ts';
import { limits } from '../../limits.ts';
import type { AppEnv, Services } from '../../services.ts';
import { datanetOf } from '../of.ts';
import { readerOf, rowView, viewOfRow } from '../rows/api.ts';
import { phrasesOf } from './query.ts';

export const searchQuery = z.object({
  q: z.string().min(1).max(limits.datanetQueryCharactersMax),
  limit: z.coerce.number().int().min(1).max(50).default(20),
});

export const searchAnswer = z
  .object({
    object: z.literal('list'),
    data: z.array(
      rowView.extend({
        match: z.object({
          score: z.number(),
          snippet: z.string(),
          /** [start, end) of the words in the snippet, in UTF-16 units. */
          highlights: z.array(z.tuple([z.number(), z.number()])),
        }),
      }),
    ),
    first_id: z.string().nullable(),
    last_id: z.string().nullable(),
    has_more: z.literal(false),
    /** There are more matches than were ranked: the newest were. */
    bounded: z.boolean(),
  })
  .openapi('DatanetSearch');

export async function searchRows(services: Services, c: Context<AppEnv>): Promise<Response> {
  const query = parseWith(searchQuery, c.req.query());
  const phrases = phrasesOf(query.q);
  const found = await datanetOf(services, c, 'reads');
  const { search, rows } = services.datanets;
  const { hits, bounded } = await search.find(found.datanet, readerOf(found), phrases, query.limit);
  const bySeq = new Map((await rows.bySeq(hits.map(({ seq }) => seq))).map((row) => [row.seq, row]));
  const data = hits.flatMap(({ seq, score, snippet }) => {
    const row = bySeq.get(seq);
    if (row === undefined) return [];
    const told = { score: Math.round(score * 1e4) / 1e4, snippet: snippet.text, highlights: snippet.highlights };
    return [{ ...viewOfRow(row), match: told }];
  });
  return c.json({ ...pageOf(data, false), bounded });
}

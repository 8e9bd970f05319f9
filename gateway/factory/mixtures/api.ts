/** GET /api/adapters/{name}/sources: what an adapter was trained on, who contributed it, and what became of it since. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import type { JobSourceRow } from '../../db/datanet-schema.ts';
import { modelNotFound } from '../../errors.ts';
import type { AppEnv, Services } from '../../services.ts';
import { modelOfCheckpoint } from '../jobs/model-name.ts';
import { markView, sourceView, viewOfMark, viewOfSource } from './view.ts';

export const adapterSourcesView = z
  .object({
    object: z.literal('adapter.sources'),
    adapter: z.string(),
    job: z.string().nullable().openapi({ description: 'null: it was not trained by a job here.' }),
    sources: z.array(
      sourceView.extend({
        name: z.string().nullable(),
        licence: z.string().nullable(),
        state: z.enum(['active', 'revoked']).nullable().openapi({ description: 'Of the Datanet now.' }),
        rows: z.number().nullable().openapi({ description: 'Of the whole version.' }),
        contributors: z
          .array(z.object({ user: z.string(), name: z.string().nullable(), rows: z.number() }))
          .nullable()
          .openapi({ description: 'Of the whole version, those with the most rows first; null for private files.' }),
      }),
    ),
    marks: z.array(markView),
  })
  .openapi('AdapterSources');

interface Contributor {
  contributor: string;
  rows: number;
}

async function sourceWithNames(services: Services, row: JobSourceRow) {
  const view = viewOfSource(row);
  const file = row.datanetId === null ? null : await services.factory.datanetFiles.get(row.fileId);
  if (file === null) return { ...view, name: null, licence: null, state: null, rows: null, contributors: null };
  const { datanet, version } = file;
  const of = (version.statistics?.by_contributor ?? []) as Contributor[];
  const names = await services.factory.access.userNames(of.map(({ contributor }) => contributor));
  return {
    ...view,
    name: datanet.name,
    licence: version.licence,
    state: datanet.state,
    rows: version.rows,
    contributors: of.map(({ contributor, rows }) => ({
      user: contributor,
      name: names.get(contributor) ?? null,
      rows,
    })),
  };
}

/** For all who may use it: they answer for what it says. */
export async function adapterSources(services: Services, c: Context<AppEnv>): Promise<Response> {
  const name = c.req.param('name') ?? '';
  const { factory } = services;
  if (!(await factory.owners.canUse(c.get('principal'), name))) throw modelNotFound(name);
  const job = await factory.jobs.making(modelOfCheckpoint(name));
  if (job === null && !(await services.pool.adapters()).some((adapter) => adapter.name === name))
    throw modelNotFound(name);
  const rows = job === null ? [] : await factory.sources.ofJob(job);
  const sources = [];
  for (const row of rows) sources.push(await sourceWithNames(services, row));
  const marks = job === null ? [] : ((await factory.sources.marksOfJobs([job])).get(job) ?? []);
  return c.json({ object: 'adapter.sources', adapter: name, job, sources, marks: marks.map(viewOfMark) });
}

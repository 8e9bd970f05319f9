/** Events of a job: as pages, newest first; or live over SSE, oldest first, until the job ends. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import type { JobRow } from '../../db/schema.ts';
import { badRequest, toApiError } from '../../errors.ts';
import { parseWith } from '../../http/validate.ts';
import { limits } from '../../limits.ts';
import { writeRecord } from '../../openai/run.ts';
import { sseResponse } from '../../openai/sse.ts';
import type { AppEnv, Services } from '../../services.ts';
import { jobOf } from './api.ts';
import { isOver } from './job-rows.ts';
import { viewOfEvent } from './view.ts';

export const eventsQuery = z.object({
  after: z.string().max(128).optional(),
  limit: z.coerce.number().int().min(1).max(limits.eventsPageMax).default(20),
  stream: z.enum(['true', 'false', '1', '0']).optional(),
});

export async function listEvents(services: Services, c: Context<AppEnv>): Promise<Response> {
  const query = parseWith(eventsQuery, c.req.query());
  const job = await jobOf(services, c);
  const { jobs } = services.factory;
  const after = query.after === undefined ? null : await jobs.event(job.id, query.after);
  if (query.after !== undefined && after === null)
    throw badRequest('after', 'invalid_value', `Invalid 'after': the job has no event ${query.after}.`);
  const live =
    query.stream === 'true' ||
    query.stream === '1' ||
    (query.stream === undefined && /\btext\/event-stream\b/i.test(c.req.header('accept') ?? ''));
  if (live) return streamEvents(services, c, job, after?.seq ?? 0);
  const { rows, hasMore } = await jobs.events(job.id, { limit: query.limit, after });
  return c.json({ object: 'list', data: rows.map(viewOfEvent), has_more: hasMore });
}

function streamEvents(services: Services, c: Context<AppEnv>, job: JobRow, from: number): Response {
  const { factory } = services;
  const close = factory.eventStreams.open(c.get('principal').ownerId);
  const record = c.get('record');
  const headers = c.get('headers');
  record.deferred = true;
  record.status = 200;
  headers['openai-processing-ms'] = String(Math.round(services.now() - record.startedAt));
  const gone = new AbortController();
  return sseResponse({
    signal: c.req.raw.signal,
    headers,
    direct: services.direct(c.env),
    onGone: () => gone.abort(),
    run: async (write) => {
      let seq = from;
      while (!gone.signal.aborted) {
        // Asked before the events are read: what comes with the end is then among them.
        const now = await factory.jobs.get(job.id);
        const events = await factory.jobs.eventsSince(job.id, seq, limits.eventsPageMax);
        write(events.map((event) => `data: ${JSON.stringify(viewOfEvent(event))}\n\n`).join(''));
        seq = events.at(-1)?.seq ?? seq;
        if (events.length === limits.eventsPageMax) continue;
        if (now === null || isOver(now.status)) break;
        // Another gateway may move the job, so the rows are looked at even if nothing is heard.
        await factory.runner.changed(job.id, limits.jobsPollMs, gone.signal);
      }
      write('data: [DONE]\n\n');
    },
    onEnd: (error) => {
      close();
      if (error !== undefined) {
        const told = toApiError(error);
        record.code = told.code;
        record.cause = told.cause;
      }
      writeRecord(services, record);
    },
  });
}

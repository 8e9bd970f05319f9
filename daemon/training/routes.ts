/** /datasets and /training over HTTP, as protocol.ts lists them. */
import { Readable } from 'node:stream';
import { Hono } from 'hono';
import { z } from 'zod';
import { DaemonError } from '../errors.ts';
import { TRAINING_LIMITS } from '../limits.ts';
import { type DaemonEnv, parse, readJson } from '../server.ts';
import type { DatasetStore } from './dataset-store.ts';
import type { Estimator } from './estimate.ts';
import { estimateRequest, runId, runRequest } from './protocol.ts';
import { resultRows } from './results.ts';
import type { TrainingRuns } from './runs.ts';

export interface TrainingParts {
  datasets: DatasetStore;
  runs: TrainingRuns;
  estimator: Estimator;
}

const after = z.coerce.number().int().min(0).default(0);

export function trainingRoutes({ datasets, runs, estimator }: TrainingParts): Hono<DaemonEnv> {
  const app = new Hono<DaemonEnv>();

  app.post('/datasets', async (c) => {
    const { incoming } = c.env;
    const announced = Number(c.req.header('content-length') ?? 0);
    try {
      // Refused in the middle, it must stay open for the answer.
      return c.json(await datasets.receive(incoming.iterator({ destroyOnReturn: false }), announced));
    } catch (error) {
      // What still comes is read past, so that who is still sending can read the answer.
      incoming.resume();
      throw incoming.errored === null || incoming.errored === undefined
        ? error
        : new DaemonError('cancelled', 'the upload was broken off');
    }
  });
  app.get('/datasets/:digest', async (c) => c.json(await datasets.get(c.req.param('digest'))));
  app.delete('/datasets/:digest', async (c) => {
    const digest = c.req.param('digest');
    if (runs.needs(digest)) {
      throw new DaemonError(
        'dataset_in_use',
        `a training run that is not over needs the dataset ${digest.slice(0, 12)}…; cancel it first`,
      );
    }
    await datasets.remove(digest);
    return c.json({ digest, deleted: true });
  });

  app.post('/training/estimate', async (c) =>
    c.json(await estimator.estimate(parse(estimateRequest, await readJson(c, TRAINING_LIMITS.bodyBytesMax)))),
  );
  app.get('/training/runs', (c) => c.json({ data: runs.list() }));
  app.put('/training/runs/:id', async (c) => {
    const id = parse(runId, c.req.param('id'));
    const { run, created } = await runs.put(id, parse(runRequest, await readJson(c, TRAINING_LIMITS.bodyBytesMax)));
    return c.json(run, created ? 201 : 200);
  });
  app.get('/training/runs/:id', (c) => c.json(runs.get(c.req.param('id'))));
  app.delete('/training/runs/:id', (c) => {
    const id = c.req.param('id');
    runs.remove(id);
    return c.json({ id, deleted: true });
  });
  app.post('/training/runs/:id/cancel', async (c) => c.json(await runs.cancel(c.req.param('id'))));
  app.post('/training/runs/:id/pause', async (c) => c.json(await runs.pause(c.req.param('id'))));
  app.post('/training/runs/:id/resume', async (c) => c.json(await runs.resume(c.req.param('id'))));
  app.get('/training/runs/:id/events', (c) => {
    const id = c.req.param('id');
    runs.get(id);
    const gone = new AbortController();
    c.env.outgoing.on('close', () => gone.abort());
    const batches = runs.events(id, parse(after, c.req.query('after')), c.req.query('follow') === 'true', gone.signal);
    const lines = async function* () {
      for await (const events of batches)
        yield Buffer.from(events.map((event) => `${JSON.stringify(event)}\n`).join(''));
    };
    const body = Readable.toWeb(Readable.from(lines(), { objectMode: false })) as ReadableStream<Uint8Array>;
    return c.body(body, 200, { 'content-type': 'application/x-ndjson; charset=utf-8', 'cache-control': 'no-store' });
  });
  app.get('/training/runs/:id/results', (c) => {
    const body = Readable.toWeb(Readable.from(resultRows(runs.eventsPath(c.req.param('id'))), { objectMode: false }));
    return c.body(body as ReadableStream<Uint8Array>, 200, { 'content-type': 'text/csv; charset=utf-8' });
  });
  return app;
}

/** Where training is off, or computes on a device that does not train. */
export function noTrainingRoutes(why: string): Hono<DaemonEnv> {
  const app = new Hono<DaemonEnv>();
  for (const path of ['/datasets', '/datasets/*', '/training/*']) {
    app.all(path, () => {
      throw new DaemonError('training_unavailable', why);
    });
  }
  return app;
}

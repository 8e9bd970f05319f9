/** POST /evaluations, GET /evaluations, POST /graders/run (see ../training/protocol.ts). */
import { randomBytes } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response';
import { Hono } from 'hono';
import { DaemonError, toDaemonError } from '../errors.ts';
import type { GenerationContext, GenerationOutcome } from '../generate/generation.ts';
import type { PrepareContext } from '../generate/prepare.ts';
import { SERVER_LIMITS } from '../limits.ts';
import { NdjsonStream } from '../ndjson-stream.ts';
import {
  type BaseModel,
  type EvaluationEvent,
  evaluationRequest,
  type GraderRunResponse,
  graderRunRequest,
  receiptIdOf,
} from '../protocol.ts';
import { type DaemonEnv, type DaemonLog, parse, readJson } from '../server.ts';
import { encodeExample } from './encode.ts';
import { evaluate } from './evaluate.ts';
import { readExamples } from './examples.ts';
import { checkGraders, grade } from './graders.ts';
import { Inference } from './inference.ts';
import { EVALUATION_LIMITS } from './limits.ts';
import type { ReportStore } from './report-store.ts';
import { sampleValues } from './template.ts';

export interface EvaluationRoutesOptions {
  model: BaseModel;
  prepare: PrepareContext;
  context: GenerationContext;
  reports: ReportStore;
  /** Path of a data set's NDJSON file. @throws DaemonError if there is none. */
  datasetPath(digest: string): string | Promise<string>;
  /** Digest of an adapter by its name. @throws if there is none. */
  digestOf(name: string): string;
  /** Why no receipt can be stored now, or null. */
  blocked?(): string | null;
  onGenerated?: (kind: 'chat' | 'completion', outcome: GenerationOutcome) => void;
  log: DaemonLog;
}

const NO_PRICE = { inputMicrosPerMillion: 0, outputMicrosPerMillion: 0, currency: 'USD' };

export function evaluationRoutes(options: EvaluationRoutesOptions): Hono<DaemonEnv> {
  const { model, prepare, context, reports, log } = options;
  const underWay = new Set<string>();
  const inference = (asked: { callerHash: string; price?: typeof NO_PRICE | undefined }, signal: AbortSignal) => {
    setMaxListeners(0, signal);
    return new Inference({
      callerHash: asked.callerHash,
      price: asked.price ?? NO_PRICE,
      baseId: model.id,
      prepare,
      context,
      signal,
      ...(options.onGenerated === undefined ? {} : { onGenerated: options.onGenerated }),
    });
  };
  const checkBlocked = () => {
    const why = options.blocked?.() ?? null;
    if (why !== null) {
      throw new DaemonError(
        'receipt_log_unavailable',
        `no receipt can be stored at the moment, so nothing is computed: ${why}`,
      );
    }
  };

  const app = new Hono<DaemonEnv>();
  app.post('/evaluations', async (c) => {
    const request = parse(evaluationRequest, await readJson(c, SERVER_LIMITS.bodyBytesMax));
    checkBlocked();
    const id = request.id ?? `eval-${randomBytes(12).toString('hex')}`;
    if (reports.has(id) || underWay.has(id)) {
      throw new DaemonError(
        'request_id_in_use',
        `there is an evaluation ${id} already; every one needs its own id`,
        'id',
      );
    }
    if (underWay.size >= EVALUATION_LIMITS.underWayMax) {
      throw new DaemonError(
        'overloaded',
        `${underWay.size} evaluations are under way, which is the limit; try again when one of them has ended`,
      );
    }
    const abort = new AbortController();
    const { outgoing } = c.env;
    const stream = new NdjsonStream<EvaluationEvent>(outgoing, () => abort.abort());
    outgoing.on('close', () => abort.abort());
    if (outgoing.destroyed) abort.abort();
    underWay.add(id);
    try {
      const examples = await readExamples(
        await options.datasetPath(request.dataset),
        request.examplesMax ?? null,
        request.seed,
      );
      const report = await evaluate(request, {
        id,
        examples,
        encode: (example) => encodeExample(example, context.vocabulary, model.contextTokens),
        baseDigest: model.digest,
        resolveAdapter: prepare.resolveAdapter,
        ask: inference(request, abort.signal),
        signal: abort.signal,
        sink: (event) => stream.write([event]),
      });
      await reports.save(report);
      const { seconds, usage, costMicros } = report;
      log.info(
        { evaluation: id, models: request.models, examples: report.examples, seconds, usage, costMicros },
        'evaluated',
      );
      stream.write([{ type: 'report', report }]);
    } catch (error) {
      const known = toDaemonError(error);
      if (known.code === 'internal_error')
        log.error({ err: error, evaluation: id }, 'an evaluation failed unexpectedly');
      else log.warn({ evaluation: id, code: known.code, cause: known.message }, 'an evaluation ended early');
      // Nothing was sent yet: the error gets a status of its own.
      if (!stream.begun) throw known;
      stream.write([{ type: 'error', error: known.body().error }]);
    } finally {
      underWay.delete(id);
    }
    stream.end();
    return RESPONSE_ALREADY_SENT;
  });
  app.get('/evaluations', async (c) => {
    const name = c.req.query('adapter');
    return c.json({ data: await reports.list(name === undefined ? null : options.digestOf(name)) });
  });
  app.get('/evaluations/:id', async (c) => {
    const report = await reports.get(c.req.param('id'));
    if (report === null) throw new DaemonError('not_found', 'there is no evaluation with this id', 'id');
    return c.json(report);
  });
  app.post('/graders/run', async (c) => {
    const request = parse(graderRunRequest, await readJson(c, SERVER_LIMITS.bodyBytesMax));
    checkBlocked();
    checkGraders([request.grader]);
    if ((await context.receipts.get(receiptIdOf(request.requestId))) !== null)
      throw new DaemonError('request_id_in_use', `the request id ${request.requestId} has a receipt already`);
    const startMs = performance.now();
    const abort = new AbortController();
    c.env.outgoing.on('close', () => abort.abort());
    const values = { item: request.item, sample: sampleValues(request.sample) };
    const { score, failure, usage, costMicros, judged } = await grade(
      request.grader,
      values,
      inference(request, abort.signal),
      request.requestId,
    );
    const seconds = (performance.now() - startMs) / 1000;
    return c.json({ score, failure, seconds, usage, costMicros, judged } satisfies GraderRunResponse);
  });
  return app;
}

/**
 * The training part of a daemon without a trainer: keeps data sets and runs as the protocol says, and lets runs go a step every few
 * milliseconds. What it is sent must pass the protocol's schemas. Its state outlives the server's restarts, as folders on a disk would.
 */
import { createHash } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { isDeepStrictEqual } from 'node:util';
import {
  type Dataset,
  estimateRequest,
  type RunRequest,
  runRequest,
  type TrainingEvent,
  type TrainingExample,
  type TrainingRun,
  trainingExample,
} from '../../../daemon/protocol.ts';
import { adapterOf, type ScriptedDaemon } from '../../support/scripted-daemon.ts';

interface Run {
  run: TrainingRun;
  events: TrainingEvent[];
  heard: Set<() => void>;
  timer: NodeJS.Timeout | undefined;
}

export interface ScriptedTraining {
  runs: Map<string, Run>;
  datasets: Map<string, { dataset: Dataset; examples: TrainingExample[] }>;
  /** Milliseconds a step takes; null: runs stay queued. */
  stepMs: number | null;
  /** Steps of a run, whatever its recipe says. */
  steps: number;
  /** Runs go on up to this step and no further, until it is changed. */
  holdAt: number | null;
  memoryAvailableBytes: number;
  /** What the chat template refuses. */
  problems: Dataset['problems'];
  /** Fails the run at this step. */
  failAt: { step: number; error: NonNullable<TrainingRun['error']> } | null;
  /** Times a run was put, by id. */
  puts: Map<string, number>;
  /** Breaks every event stream that is open. */
  hangUp(): void;
  /** No run goes on. */
  stop(): void;
}

export function scriptTraining(daemon: ScriptedDaemon): ScriptedTraining {
  const open = new Set<ServerResponse>();
  const training: ScriptedTraining = {
    runs: new Map(),
    datasets: new Map(),
    stepMs: 2,
    steps: 6,
    holdAt: null,
    memoryAvailableBytes: 8e9,
    problems: [],
    failAt: null,
    puts: new Map(),
    hangUp: () => {
      for (const response of open) response.destroy();
    },
    stop: () => {
      for (const { timer } of training.runs.values()) clearTimeout(timer);
      training.stepMs = null;
    },
  };

  const tell = (one: Run, event: Omit<TrainingEvent, 'seq' | 'time'>) => {
    one.events.push({ ...event, seq: one.events.length + 1, time: new Date().toISOString() });
    one.run.lastEvent = one.events.length;
    for (const hear of [...one.heard]) hear();
  };
  const settle = (one: Run, status: TrainingRun['status']) => {
    one.run.status = status;
    if (['succeeded', 'failed', 'cancelled'].includes(status)) one.run.finishedAt = new Date().toISOString();
    clearTimeout(one.timer);
    const level = status === 'failed' ? 'error' : 'info';
    tell(one, { level, type: 'status', message: `now ${status}`, data: { status } });
  };
  const publish = (one: Run, adapter: string, step: number) => {
    const metrics = { step, trainLoss: 1 / step, trainMeanTokenAccuracy: 0.5 };
    const createdAt = new Date().toISOString();
    const checkpoint = { step, epoch: 1, adapter, digest: 'c'.repeat(64), metrics, createdAt };
    daemon.adapters.set(adapter, { ...adapterOf(adapter), digest: checkpoint.digest });
    one.run.checkpoints.push(checkpoint);
    tell(one, { level: 'info', type: 'checkpoint', message: 'Checkpoint', data: { ...checkpoint } });
  };
  const advance = (one: Run) => {
    const { run } = one;
    if (run.status === 'running' && training.holdAt !== null && run.step >= training.holdAt) {
      one.timer = setTimeout(() => advance(one), 5);
      return;
    }
    if (run.status === 'queued') {
      run.startedAt ??= new Date().toISOString();
      settle(one, 'running');
    } else if (run.status === 'running') {
      run.step += 1;
      run.trainedTokens += 100;
      if (training.failAt?.step === run.step) {
        run.error = training.failAt.error;
        settle(one, 'failed');
        return;
      }
      const data = {
        step: run.step,
        steps: run.steps,
        epoch: 1,
        trainLoss: 2 / run.step,
        trainMeanTokenAccuracy: 0.5,
        learningRate: 1e-4,
        gradientNorm: 1,
        tokens: run.trainedTokens,
        tokensPerSecond: 1000,
        elapsedSeconds: run.step,
        remainingSeconds: run.steps - run.step,
        memoryBytes: 1e9,
      };
      tell(one, { level: 'info', type: 'metrics', message: 'a step', data });
      if (run.step === Math.ceil(run.steps / 2)) publish(one, `${run.request.adapter}:ckpt-step-${run.step}`, run.step);
      if (run.step === run.steps) {
        daemon.adapters.set(run.request.adapter, adapterOf(run.request.adapter));
        settle(one, 'succeeded');
        return;
      }
    } else return;
    if (training.stepMs !== null) one.timer = setTimeout(() => advance(one), training.stepMs);
  };

  const json = (response: ServerResponse, status: number, body: unknown) =>
    void response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
  const refuse = (response: ServerResponse, status: number, code: string, message: string) =>
    json(response, status, { error: { status, code, type: 'invalid_request_error', message, param: null } });
  const body = async (request: IncomingMessage) => {
    const parts: Buffer[] = [];
    for await (const part of request) parts.push(part as Buffer);
    return Buffer.concat(parts).toString();
  };

  const routes: [
    string,
    RegExp,
    (request: IncomingMessage, response: ServerResponse, id: string, url: URL) => unknown,
  ][] = [
    [
      'POST',
      /^\/datasets$/,
      async (request, response) => {
        const text = await body(request);
        const lines = text.split('\n').filter(Boolean);
        const examples = lines.map((line) => trainingExample.parse(JSON.parse(line)));
        const digest = createHash('sha256').update(text).digest('hex');
        const dataset: Dataset = {
          digest,
          bytes: text.length,
          kind: (examples[0] as TrainingExample).kind,
          examples: examples.length,
          tokens: Math.ceil(text.length / 4),
          trainedTokens: Math.ceil(text.length / 8),
          truncated: 0,
          duplicates: 0,
          longest: Math.max(...lines.map((line) => line.length)),
          histogram: { width: 64, counts: [examples.length] },
          problems: training.problems,
        };
        training.datasets.set(digest, { dataset, examples });
        json(response, 200, dataset);
      },
    ],
    [
      'POST',
      /^\/training\/estimate$/,
      async (request, response) => {
        const { dataset, recipe } = estimateRequest.parse(JSON.parse(await body(request)));
        const known = training.datasets.get(dataset);
        if (known === undefined) return refuse(response, 404, 'not_found', 'no such dataset');
        const trainedTokens = known.dataset.tokens * recipe.epochs;
        json(response, 200, {
          steps: Math.ceil(known.dataset.examples / recipe.batchSize) * recipe.epochs,
          tokens: trainedTokens,
          trainedTokens,
          seconds: 12,
          memoryBytes: 2e9,
          memoryAvailableBytes: training.memoryAvailableBytes,
          fits: training.memoryAvailableBytes > 2e9,
        });
      },
    ],
    [
      'PUT',
      /^\/training\/runs\/([\w-]+)$/,
      async (request, response, id) => {
        const parsed: RunRequest = runRequest.parse(JSON.parse(await body(request)));
        training.puts.set(id, (training.puts.get(id) ?? 0) + 1);
        const known = training.runs.get(id);
        if (known !== undefined) {
          if (!isDeepStrictEqual(known.run.request, parsed))
            return refuse(response, 409, 'run_exists', 'another request');
          return json(response, 200, known.run);
        }
        if (!training.datasets.has(parsed.dataset)) return refuse(response, 404, 'not_found', 'no such dataset');
        const run: TrainingRun = {
          id,
          status: 'queued',
          request: parsed,
          baseDigest: daemon.model.digest,
          step: 0,
          steps: training.steps,
          epoch: 0,
          trainedTokens: 0,
          trainLoss: null,
          tokensPerSecond: null,
          estimatedFinish: null,
          memoryBytes: null,
          checkpoints: [],
          error: null,
          createdAt: new Date().toISOString(),
          startedAt: null,
          finishedAt: null,
          lastEvent: 0,
        };
        const one: Run = { run, events: [], heard: new Set(), timer: undefined };
        training.runs.set(id, one);
        settle(one, 'queued');
        if (training.stepMs !== null) one.timer = setTimeout(() => advance(one), training.stepMs);
        json(response, 201, run);
      },
    ],
    [
      'GET',
      /^\/training\/runs\/([\w-]+)$/,
      (_, response, id) => {
        const one = training.runs.get(id);
        return one === undefined ? refuse(response, 404, 'not_found', 'no such run') : json(response, 200, one.run);
      },
    ],
    [
      'POST',
      /^\/training\/runs\/([\w-]+)\/(?:cancel|pause|resume)$/,
      async (request, response, id, url) => {
        await body(request);
        const one = training.runs.get(id);
        if (one === undefined) return refuse(response, 404, 'not_found', 'no such run');
        if (one.run.finishedAt !== null) return refuse(response, 409, 'run_not_ready', 'the run is over');
        const action = url.pathname.split('/').at(-1);
        if (action === 'cancel') settle(one, 'cancelled');
        if (action === 'pause') settle(one, 'paused');
        if (action === 'resume' && one.run.status === 'paused') {
          settle(one, 'queued');
          if (training.stepMs !== null) one.timer = setTimeout(() => advance(one), training.stepMs);
        }
        json(response, 200, one.run);
      },
    ],
    [
      'GET',
      /^\/training\/runs\/([\w-]+)\/events$/,
      async (_, response, id, url) => {
        const one = training.runs.get(id);
        if (one === undefined) return refuse(response, 404, 'not_found', 'no such run');
        response.writeHead(200, { 'content-type': 'application/x-ndjson' }).flushHeaders();
        open.add(response);
        let sent = Number(url.searchParams.get('after') ?? 0);
        const pump = () => {
          for (const event of one.events.slice(sent)) response.write(`${JSON.stringify(event)}\n`);
          sent = Math.max(sent, one.events.length);
          if (one.run.finishedAt !== null) response.end();
        };
        one.heard.add(pump);
        response.on('close', () => {
          one.heard.delete(pump);
          open.delete(response);
        });
        pump();
      },
    ],
    [
      'GET',
      /^\/training\/runs\/([\w-]+)\/results$/,
      (_, response, id) => {
        const one = training.runs.get(id);
        if (one === undefined) return refuse(response, 404, 'not_found', 'no such run');
        response.writeHead(200, { 'content-type': 'text/csv' });
        response.write(
          'step,train_loss,train_mean_token_accuracy,valid_loss,valid_mean_token_accuracy,full_valid_loss,full_valid_mean_token_accuracy\n',
        );
        for (let step = 1; step <= one.run.step; step++) response.write(`${step},${2 / step},0.5,,,,\n`);
        response.end();
      },
    ],
  ];

  daemon.extra = async (request, response, url) => {
    for (const [method, pattern, handle] of routes) {
      const match = pattern.exec(url.pathname);
      if (match === null || request.method !== method) continue;
      await handle(request, response, match[1] ?? '', url);
      return true;
    }
    return false;
  };
  return training;
}

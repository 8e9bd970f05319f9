/**
 * Moves every job that is not over towards its end, one loop each: validate → put the run → follow its events → finish. Nothing is kept in
 * memory that is not in the database or on the daemon, so either process may stop at any moment: the loop begins again where the rows say.
 * The daemon knows a run by the job's id, so putting it twice is putting it once; events are stored once by their sequence number.
 * Where several gateways share the database, a job is moved by the one that has its lease (leases.ts).
 */
import type { RunRequestInput, TrainingRun } from '../../../daemon/protocol.ts';
import type { DaemonClient } from '../../daemons/client.ts';
import { TrainingClient } from '../../daemons/training.ts';
import type { JobSourceRow } from '../../db/datanet-schema.ts';
import type { JobRow } from '../../db/schema.ts';
import { ApiError, engineUnavailable } from '../../errors.ts';
import { limits } from '../../limits.ts';
import type { Factory } from '../factory.ts';
import { sourceNotes } from '../mixtures/notes.ts';
import type { Refused } from '../mixtures/rights.ts';
import { filesOf, partsOf } from '../mixtures/sources.ts';
import { type Change, isOver } from './job-rows.ts';
import { JobLeases } from './leases.ts';
import { changeOf, createdEvent, STARTED, timeOf } from './mirror.ts';
import { storeResults } from './results.ts';
import { checkBase, JobFailure, sendAgain, validateJob } from './validate.ts';

interface Driver {
  /** Ends the step under way; the loop then looks at the row again. */
  step: AbortController;
  done: Promise<void>;
}

/** What a step throws when it should simply be taken again. */
const WOKEN = new Error('the job changed');

export class JobRunner {
  readonly #factory: Factory;
  readonly #drivers = new Map<string, Driver>();
  readonly #stopping = new AbortController();
  readonly #listeners = new Map<string, Set<() => void>>();
  readonly #leases: JobLeases;
  readonly #leaseRenewMs: number;
  /** Other gateways may share the database. */
  #shared = false;
  #renewing: ReturnType<typeof setTimeout> | undefined;

  constructor(factory: Factory, lease: { ms: number; renewMs: number }) {
    this.#factory = factory;
    this.#leases = new JobLeases(factory.client, lease.ms);
    this.#leaseRenewMs = lease.renewMs;
  }

  /** Goes on with all jobs there are, or with those that no other gateway moves. */
  async start(options: { exclusive: boolean }): Promise<void> {
    this.#shared = !options.exclusive;
    if (this.#shared) return this.#renew();
    await this.#leases.clear();
    for (const id of await this.#factory.jobs.active()) this.drive(id);
  }

  async stop(): Promise<void> {
    this.#stopping.abort(WOKEN);
    clearTimeout(this.#renewing);
    for (const { step } of this.#drivers.values()) step.abort(WOKEN);
    await Promise.all([...this.#drivers.values()].map(({ done }) => done));
  }

  /** Says that this gateway lives, hears what others want of it, and takes up what nobody moves. */
  async #renew(): Promise<void> {
    try {
      for (const id of await this.#leases.renew()) this.#drivers.get(id)?.step.abort(WOKEN);
      for (const id of await this.#leases.free()) if (!this.#drivers.has(id)) this.drive(id);
    } catch (error) {
      this.#factory.log.warn({ err: error }, 'the leases of fine-tuning jobs could not be renewed');
    }
    if (this.#stopping.signal.aborted) return;
    this.#renewing = setTimeout(() => void this.#renew(), this.#leaseRenewMs);
    this.#renewing.unref?.();
  }

  /** Begins to move a job; one that moves already looks at its row again. */
  drive(id: string): void {
    const driver = this.#drivers.get(id);
    if (driver !== undefined) {
      driver.step.abort(WOKEN);
      return;
    }
    if (this.#stopping.signal.aborted) return;
    const made: Driver = { step: new AbortController(), done: Promise.resolve() };
    this.#drivers.set(id, made);
    made.done = this.#loop(id, made)
      .finally(() => (this.#shared ? this.#leases.release(id) : undefined))
      // It ends by itself.
      .catch((error: unknown) => this.#factory.log.warn({ err: error, jobId: id }, 'a lease could not be given back'))
      .finally(() => this.#drivers.delete(id));
  }

  /** Calls back on every change of the job in this process. */
  listen(id: string, listener: () => void): () => void {
    const listeners = this.#listeners.get(id) ?? new Set();
    this.#listeners.set(id, listeners);
    listeners.add(listener);
    return () => {
      listeners.delete(listener);
      if (listeners.size === 0) this.#listeners.delete(id);
    };
  }

  /** Resolves at the job's next change, or after so many milliseconds. */
  async changed(id: string, timeoutMs: number, signal?: AbortSignal): Promise<void> {
    await new Promise<void>((resolve) => {
      const end = () => {
        clearTimeout(timer);
        stop();
        signal?.removeEventListener('abort', end);
        resolve();
      };
      const timer = setTimeout(end, timeoutMs);
      const stop = this.listen(id, end);
      signal?.addEventListener('abort', end, { once: true });
      if (signal?.aborted === true) end();
    });
  }

  async #change(id: string, change: Change): Promise<void> {
    await this.#factory.jobs.change(id, change);
    for (const listener of [...(this.#listeners.get(id) ?? [])]) listener();
  }

  async #loop(id: string, driver: Driver): Promise<void> {
    let delay: number = limits.jobRetryMs;
    let defects = 0;
    while (!this.#stopping.signal.aborted) {
      driver.step = new AbortController();
      const { signal } = driver.step;
      try {
        const job = await this.#factory.jobs.get(id);
        if (job === null || isOver(job.status)) return;
        if (this.#shared && !(await this.#leases.hold(id))) return;
        if (job.status === 'validating_files') await this.#validate(job, signal);
        else await this.#follow(job, signal);
        delay = limits.jobRetryMs;
        defects = 0;
        continue;
      } catch (error) {
        if (this.#stopping.signal.aborted) return;
        if (signal.aborted) continue;
        const failure = error instanceof JobFailure ? error : this.#failureOf(error, defects);
        if (failure !== null) {
          await this.#fail(id, failure).catch((cause: unknown) => {
            this.#factory.log.error({ err: cause, jobId: id }, 'a failed job could not be written');
          });
        } else {
          if (!(error instanceof ApiError)) defects += 1;
          this.#factory.log.warn({ err: error, jobId: id, delayMs: delay }, 'a fine-tuning job waits and tries again');
        }
      }
      await this.changed(id, delay, signal);
      delay = Math.min(limits.jobRetryMsMax, delay * 2);
    }
  }

  /** What the daemon refuses for good fails the job; what may pass is tried again: null. */
  #failureOf(error: unknown, defects: number): JobFailure | null {
    if (error instanceof ApiError) {
      const passing = error.status >= 500 || error.status === 429 || error.status === 404 || error.status === 499;
      const final = error.status === 507 || error.code === 'disk_full' || error.code === 'training_unavailable';
      if (passing && !final) return null;
      const param =
        error.param === 'dataset' ? 'training_file' : error.param === 'validation' ? 'validation_file' : error.param;
      return new JobFailure(error.code ?? 'internal_error', error.message, param);
    }
    if (defects < limits.jobDefectsMax) return null;
    this.#factory.log.error({ err: error }, 'a fine-tuning job cannot go on');
    return new JobFailure('internal_error', 'The gateway failed on this job. Its log tells why; create the job again.');
  }

  async #validate(job: JobRow, signal: AbortSignal): Promise<void> {
    const { id, trainingFile, validationFile } = job;
    if (job.wanted === 'cancel') return this.#end(job, 'cancelled', null);
    const training = partsOf(job).map(({ file }) => file);
    const named = training.length === 1 ? trainingFile : training.join(', ');
    const files = validationFile === null ? named : `${named} and validation file: ${validationFile}`;
    await this.#change(id, {
      events: [
        // Said already, unless the process that made the job ended before it could.
        createdEvent(id),
        { dedupe: 'validating', level: 'info', type: 'message', message: `Validating training file: ${files}` },
      ],
    });
    await this.#factory.turns.take(signal, async () => {
      // Before its files are read for nothing; and again when they have been, since that may take long.
      await this.#checkRights(job);
      const client = await this.#clientOf(job);
      const validated = await validateJob(this.#factory, client, job, signal);
      const { dataset, validation, recipe, estimate, sources, warnings } = validated;
      await this.#checkRights(job);
      const told = warnings.map(({ param, fileId, report }) => ({
        dedupe: `warnings ${param}${training.length === 1 || param === 'validation_file' ? '' : ` ${fileId}`}`,
        level: 'warn' as const,
        type: 'message' as const,
        message: `The ${param === 'training_file' ? 'training' : 'validation'} file${training.length === 1 ? '' : ` ${fileId}`} has ${report.warnings} warning(s): ${Object.entries(
          report.rules,
        )
          .map(([rule, n]) => `${rule} × ${n}`)
          .join(', ')}`,
        data: { problems: report.problems.slice(0, 10) },
      }));
      const cut =
        dataset.truncated === 0
          ? []
          : [
              {
                dedupe: 'truncated',
                level: 'warn' as const,
                type: 'message' as const,
                message: `${dataset.truncated} example(s) are longer than the model's context and will be cut at the end`,
              },
            ];
      await this.#change(id, {
        set: {
          status: 'queued',
          recipe,
          estimate,
          dataset: dataset.digest,
          validation: validation?.digest ?? null,
          daemonUrl: client.daemon.url,
        },
        sources,
        events: [
          ...told,
          ...cut,
          {
            dedupe: 'queued',
            level: 'info',
            type: 'message',
            message: 'Files validated, moving job to queued state',
            data: { estimate: { ...estimate } },
          },
        ],
      });
    });
  }

  /** @throws JobFailure when the owner may not train on these files now. */
  async #checkRights(job: JobRow): Promise<void> {
    const refused = await this.#factory.rights.ofJob(job, filesOf(job));
    if (refused !== null) throw permissionRevoked(refused);
  }

  /**
   * Why the run may not begin, or go on after its pause. What was seen to begin goes on until it is paused: it began with permission. A run
   * that began where nobody saw it, and may not by now, is stopped.
   */
  async #refusal(job: JobRow, anew = false): Promise<JobFailure | null> {
    if (job.wanted === 'cancel') return null;
    const resumes = job.status === 'paused' && job.wanted === 'run';
    const waits = job.status === 'queued' && (anew || !(await this.#factory.jobs.hasBegun(job.id)));
    if (!resumes && !waits) return null;
    const refused = await this.#factory.rights.ofJob(job, filesOf(job));
    return refused === null ? null : permissionRevoked(refused);
  }

  /** A job that may not train any more: its run is cancelled where there is one, then the job has failed. */
  async #giveUp(job: JobRow, failure: JobFailure, client: TrainingClient, signal: AbortSignal): Promise<void> {
    if (!(await client.knows(job.id, signal))) return this.#fail(job.id, failure);
    let run = await client.run(job.id, signal);
    // Over already: it is what it is.
    if (isRunOver(run)) return this.#finish(job, run, client, signal);
    run = await this.#act(job.id, 'cancel', client, signal);
    while (!isRunOver(run)) {
      await this.changed(job.id, limits.jobRetryMs, signal);
      signal.throwIfAborted();
      run = await client.run(job.id, signal);
    }
    await this.#finish(job, run, client, signal, failure);
  }

  async #clientOf(job: JobRow): Promise<TrainingClient> {
    const { pool } = this.#factory;
    let client: DaemonClient | undefined;
    if (job.daemonUrl === null) client = await pool.placement(job.adapter, job.model);
    else client = pool.clients.find(({ url }) => url === job.daemonUrl) ?? only(pool.clients);
    if (client === undefined) throw engineUnavailable(limits.retryAfterSeconds);
    return new TrainingClient(client);
  }

  async #follow(given: JobRow, signal: AbortSignal): Promise<void> {
    let job = given;
    const { id } = job;
    const client = await this.#clientOf(job);
    const refusal = await this.#refusal(job);
    if (refusal !== null) return this.#giveUp(job, refusal, client, signal);
    if (job.runCreatedAt === null) {
      // Where it was never put, there is nothing to cancel but the row; a process that ended may have put it without saying so.
      if (job.wanted === 'cancel' && !(await client.knows(id, signal))) return this.#end(job, 'cancelled', null);
      checkBase(await client.daemon.model(), job);
    }
    let run = await this.#put(job, client, signal);
    if (job.runCreatedAt !== run.createdAt) {
      // Another run in the place of one that the daemon has lost is a beginning too.
      const again = job.runCreatedAt === null ? null : await this.#refusal({ ...job, status: 'queued' }, true);
      if (again !== null) return this.#giveUp(job, again, client, signal);
      // A new run: its events are counted from one.
      await this.#change(id, { set: { runCreatedAt: run.createdAt, lastEvent: 0 } });
      job = { ...job, runCreatedAt: run.createdAt, lastEvent: 0 };
    }
    const action = actionFor(job.wanted, run.status);
    if (action !== null) run = await this.#act(id, action, client, signal);
    if (!isRunOver(run)) {
      for await (const events of client.events(id, job.lastEvent, signal)) {
        signal.throwIfAborted();
        const { over, ...change } = changeOf(job, events, run.createdAt);
        await this.#change(id, change);
        if ((change.checkpoints?.length ?? 0) > 0) this.#factory.pool.invalidate();
        job = { ...job, ...change.set };
        if (over) break;
      }
      run = await client.run(id, signal);
    }
    if (isRunOver(run)) await this.#finish(job, run, client, signal);
    // The stream ended early (a daemon that stops): the next look at the row begins anew, after a moment.
    else await this.changed(id, limits.jobRetryMs, signal);
  }

  /** A run may have ended before it heard of it. */
  async #act(
    id: string,
    action: 'cancel' | 'pause' | 'resume',
    client: TrainingClient,
    signal: AbortSignal,
  ): Promise<TrainingRun> {
    try {
      return await client.act(id, action, signal);
    } catch (error) {
      if (!(error instanceof ApiError) || error.status >= 500) throw error;
      return await client.run(id, signal);
    }
  }

  /** A daemon that has lost the data sets is given them again. */
  async #put(job: JobRow, client: TrainingClient, signal: AbortSignal): Promise<TrainingRun> {
    const request = requestOf(job, await this.#factory.sources.ofJob(job.id));
    try {
      return await client.putRun(job.id, request, signal);
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 404) throw error;
      await this.#checkRights(job);
      await sendAgain(this.#factory, client, job, signal);
      return await client.putRun(job.id, request, signal);
    }
  }

  /** The run is over: what was not followed is read, then all of the end is written at once. */
  async #finish(
    given: JobRow,
    run: TrainingRun,
    client: TrainingClient,
    signal: AbortSignal,
    /** Why the gateway itself stopped it. */
    failure: JobFailure | null = null,
  ): Promise<void> {
    let job = given;
    while (job.lastEvent < run.lastEvent) {
      const before = job.lastEvent;
      for await (const events of client.events(job.id, job.lastEvent, signal)) {
        const { over: _, ...change } = changeOf(job, events, run.createdAt);
        await this.#change(job.id, change);
        job = { ...job, ...change.set };
        if (job.lastEvent >= run.lastEvent) break;
      }
      if (job.lastEvent === before) break;
    }
    const resultFile = run.step > 0 ? await storeResults(this.#factory, job, client, signal) : null;
    if (run.status !== 'failed') await this.#factory.charge(job, run.trainedTokens);
    this.#factory.pool.invalidate();
    const end = { trainedTokens: run.trainedTokens, resultFile, finishedAt: run.finishedAt };
    if (run.status === 'succeeded') {
      const refusal = await this.#lastRefusal(job, run, client);
      return refusal === null ? this.#end(job, 'succeeded', end) : this.#fail(job.id, refusal, end);
    }
    if (failure !== null) return this.#fail(job.id, failure, end);
    if (run.status === 'cancelled') return this.#end(job, 'cancelled', end);
    const { code, message, param } = run.error ?? {
      code: 'internal_error',
      message: 'The training stopped.',
      param: null,
    };
    await this.#fail(job.id, new JobFailure(code, message, param), end);
  }

  /** Right before the model is told of: hours have passed since anything was asked. What its owner may not have is taken out again. */
  async #lastRefusal(job: JobRow, run: TrainingRun, client: TrainingClient): Promise<JobFailure | null> {
    const base = await client.daemon.model();
    if (base.digest !== run.baseDigest) {
      const message = `The base model is another one (${base.digest.slice(0, 12)}…) than the one that was trained on (${run.baseDigest.slice(0, 12)}…), so the result cannot be used. Start the daemon with the model of before, or make the job again.`;
      return new JobFailure('base_changed', message, 'model');
    }
    const refused = await this.#factory.rights.ofOwner(job);
    if (refused === null) return null;
    try {
      await client.daemon.deleteAdapter(job.adapter);
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 404) throw error;
    }
    return permissionRevoked(refused);
  }

  async #end(
    job: JobRow,
    status: 'succeeded' | 'cancelled',
    end: { trainedTokens: number; resultFile: string | null; finishedAt: string | null } | null,
  ): Promise<void> {
    const message = (dedupe: string, text: string) => ({
      dedupe,
      level: 'info' as const,
      type: 'message' as const,
      message: text,
    });
    await this.#change(job.id, {
      set: {
        status,
        finishedAt: end?.finishedAt == null ? this.#factory.now() : timeOf(end.finishedAt),
        estimatedFinish: null,
        trainedTokens: end?.trainedTokens ?? null,
        resultFile: end?.resultFile ?? null,
        ...(status === 'succeeded' ? { fineTunedModel: job.adapter } : {}),
      },
      events:
        status === 'cancelled'
          ? [message('cancelled', 'Fine-tuning job cancelled')]
          : [
              STARTED,
              message('model', `New fine-tuned model created: ${job.adapter}`),
              message('completed', 'The job has successfully completed'),
            ],
    });
  }

  async #fail(
    id: string,
    failure: JobFailure,
    end: { trainedTokens: number; resultFile: string | null; finishedAt: string | null } | null = null,
  ): Promise<void> {
    const { code, message, param, problems } = failure;
    await this.#change(id, {
      set: {
        status: 'failed',
        error: { code, message, param },
        finishedAt: end?.finishedAt == null ? this.#factory.now() : timeOf(end.finishedAt),
        estimatedFinish: null,
        resultFile: end?.resultFile ?? null,
      },
      events: [
        {
          dedupe: 'failed',
          level: 'error',
          type: 'message',
          message,
          data: { error_code: code, error_param: param, ...(problems.length === 0 ? {} : { problems }) },
        },
      ],
    });
  }
}

function only(clients: readonly DaemonClient[]): DaemonClient | undefined {
  return clients.length === 1 ? clients[0] : undefined;
}

function isRunOver(run: TrainingRun): boolean {
  return run.status === 'succeeded' || run.status === 'failed' || run.status === 'cancelled';
}

/** What brings the run to where its owner wants it; null: it is there. */
function actionFor(wanted: JobRow['wanted'], status: TrainingRun['status']): 'cancel' | 'pause' | 'resume' | null {
  const under = status === 'queued' || status === 'running';
  if (wanted === 'cancel') return under || status === 'paused' ? 'cancel' : null;
  if (wanted === 'pause') return under ? 'pause' : null;
  return status === 'paused' ? 'resume' : null;
}

function permissionRevoked({ message }: Refused): JobFailure {
  return new JobFailure('permission_revoked', `The job may not train any more. ${message}`, null);
}

function requestOf(job: JobRow, sources: readonly JobSourceRow[]): RunRequestInput {
  if (job.recipe === null || job.dataset === null) throw new Error(`job ${job.id} was queued without a recipe`);
  const notes: Record<string, string> = { job: job.id, training_file: job.trainingFile };
  if (job.validationFile !== null) notes.validation_file = job.validationFile;
  if (job.suffix !== null) notes.suffix = job.suffix;
  Object.assign(notes, sourceNotes(sources));
  return {
    dataset: job.dataset,
    ...(job.validation === null ? {} : { validation: job.validation }),
    recipe: job.recipe,
    adapter: job.adapter,
    owner: job.callerHash,
    notes,
  };
}

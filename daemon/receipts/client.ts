/**
 * The receipt log as the daemon uses it: same face as ReceiptLog, the work in a thread of its own.
 *
 * When the thread dies, calls in flight reject with log_unavailable (appending the same receipt again is safe: ids are idempotent),
 * health() says degraded, and a new thread is started with growing pauses; calls meanwhile wait for it, up to the queue limit.
 */
import { Worker } from 'node:worker_threads';
import type { ConsistencyBundle, Receipt, ReceiptBundle } from '../protocol.ts';
import type { Appended, LogHealth, ReceiptLogApi } from './api.ts';
import { type Entry, receiptEntry } from './entry.ts';
import { LogError } from './errors.ts';
import { LOG_LIMITS } from './limits.ts';
import type { Operation, Reply, Request, WorkerData } from './messages.ts';

interface Call {
  operation: Operation;
  resolve: (result: unknown) => void;
  reject: (error: Error) => void;
}

export class ReceiptLogClient implements ReceiptLogApi {
  readonly #options: WorkerData;
  readonly #queueMax: number;
  #worker: Worker | null = null;
  /** Sent and not answered, or (while the thread is down) waiting to be sent. */
  readonly #calls = new Map<number, Call>();
  #nextCall = 1;
  #up = false;
  #vkey = '';
  #origin = '';
  #health: LogHealth = {
    status: 'degraded',
    detail: 'The log is being opened.',
    size: 0,
    queued: 0,
    commits: 0,
    lastCommitMs: 0,
  };
  #restartTimer: NodeJS.Timeout | null = null;
  #restartDelayMs = LOG_LIMITS.restartFirstMs;
  /** Why the log could not be opened again, when that needs a person. */
  #failure: LogError | null = null;
  #closing: Promise<void> | null = null;

  private constructor(options: WorkerData) {
    this.#options = options;
    this.#queueMax = options.limits?.queueMax ?? LOG_LIMITS.queueMax;
  }

  /** Starts the thread and opens the log. Rejects as ReceiptLog.open does. */
  static async open(options: WorkerData): Promise<ReceiptLogClient> {
    const client = new ReceiptLogClient(options);
    await client.#start();
    return client;
  }

  get size(): number {
    return this.#health.size;
  }
  get vkey(): string {
    return this.#vkey;
  }
  get origin(): string {
    return this.#origin;
  }
  /** As the thread last told; no waiting. */
  health(): LogHealth {
    return { ...this.#health, queued: this.#calls.size };
  }
  /** For tests: the thread itself. */
  get worker(): Worker | null {
    return this.#worker;
  }

  async append(receipt: Receipt): Promise<Appended> {
    return this.appendEntry(receiptEntry(receipt));
  }
  appendEntry(entry: Entry): Promise<Appended> {
    return this.#call({ name: 'append', entry }) as Promise<Appended>;
  }
  get(id: string): Promise<ReceiptBundle | null> {
    return this.#call({ name: 'get', id }) as Promise<ReceiptBundle | null>;
  }
  getByIndex(leafIndex: number): Promise<ReceiptBundle | null> {
    return this.#call({ name: 'getByIndex', leafIndex }) as Promise<ReceiptBundle | null>;
  }
  checkpoint(): Promise<string> {
    return this.#call({ name: 'checkpoint' }) as Promise<string>;
  }
  tile(path: string): Promise<Uint8Array | null> {
    return this.#call({ name: 'tile', path }) as Promise<Uint8Array | null>;
  }
  consistency(oldSize: number, newSize?: number): Promise<ConsistencyBundle> {
    return this.#call({ name: 'consistency', oldSize, newSize }) as Promise<ConsistencyBundle>;
  }
  audit(from = 0, leavesMax = Number.POSITIVE_INFINITY): Promise<{ leaves: number }> {
    return this.#call({ name: 'audit', from, leavesMax }) as Promise<{ leaves: number }>;
  }

  /** Opens the log again in a new thread, for instance after somebody repaired what made it fail. Calls in flight reject. */
  async restart(): Promise<void> {
    if (this.#closing) throw new LogError('log_closed', 'The receipt log is closed.');
    if (this.#restartTimer) clearTimeout(this.#restartTimer);
    const old = this.#worker;
    this.#down(
      new LogError('log_unavailable', 'The receipt log is being restarted; appending the same receipt again is safe.'),
    );
    await old?.terminate();
    this.#failure = null;
    await this.#start();
  }

  /** Commits what is queued, closes the database, ends the thread. */
  close(): Promise<void> {
    this.#closing ??= this.#shutDown();
    return this.#closing;
  }

  async #shutDown(): Promise<void> {
    if (this.#restartTimer) clearTimeout(this.#restartTimer);
    const worker = this.#worker;
    if (worker && this.#up) {
      // The thread settles appends before it answers; a thread that dies meanwhile has nothing left to close.
      await new Promise<void>((resolve) =>
        this.#post({ operation: { name: 'close' }, resolve: () => resolve(), reject: () => resolve() }),
      );
    }
    this.#up = false;
    this.#health = { ...this.#health, status: 'closed', detail: 'The log was closed.' };
    await worker?.terminate();
    this.#rejectCalls(new LogError('log_closed', 'The receipt log is closed: the daemon is stopping.'));
  }

  #call(operation: Operation): Promise<unknown> {
    if (this.#closing)
      return Promise.reject(new LogError('log_closed', 'The receipt log is closed: the daemon is stopping.'));
    if (this.#failure) return Promise.reject(this.#failure);
    if (this.#calls.size >= this.#queueMax)
      return Promise.reject(
        new LogError(
          'log_queue_full',
          `${this.#calls.size} calls wait for the receipt log already: try again in a moment.`,
        ),
      );
    return new Promise((resolve, reject) => this.#post({ operation, resolve, reject }));
  }

  #post(call: Call): void {
    const number = this.#nextCall++;
    this.#calls.set(number, call);
    if (this.#up) this.#worker?.postMessage({ call: number, operation: call.operation } satisfies Request);
  }

  /** Resolves when the log is open. */
  #start(): Promise<void> {
    const worker = new Worker(new URL('./worker-boot.mjs', import.meta.url), {
      workerData: this.#options,
      name: 'receipts',
    });
    this.#worker = worker;
    return new Promise((resolve, reject) => {
      worker.on('message', (reply: Reply) => {
        if (this.#worker !== worker) return;
        if (reply.kind === 'refused') {
          this.#worker = null;
          worker.terminate();
          reject(new LogError(reply.error.code, reply.error.message));
          return;
        }
        this.#receive(reply);
        if (reply.kind === 'open') resolve();
      });
      let cause = 'it ended';
      worker.on('error', (error) => {
        cause = error instanceof Error ? error.message : String(error);
      });
      worker.on('exit', () => {
        if (this.#worker !== worker) return;
        const error = new LogError(
          'log_unavailable',
          `The receipt log's thread died (${cause}). It is being restarted; appending the same receipt again is safe.`,
        );
        const wasUp = this.#up;
        this.#down(error);
        if (wasUp) this.#scheduleRestart();
        reject(error);
      });
    });
  }

  #receive(reply: Exclude<Reply, { kind: 'refused' }>): void {
    switch (reply.kind) {
      case 'open':
        this.#vkey = reply.vkey;
        this.#origin = reply.origin;
        this.#health = reply.health;
        this.#up = true;
        this.#restartDelayMs = LOG_LIMITS.restartFirstMs;
        for (const [number, { operation }] of this.#calls)
          this.#worker?.postMessage({ call: number, operation } satisfies Request);
        return;
      case 'health':
        this.#health = reply.health;
        return;
      case 'result':
        this.#take(reply.call)?.resolve(reply.result);
        return;
      case 'error':
        this.#take(reply.call)?.reject(new LogError(reply.error.code, reply.error.message));
        return;
    }
  }

  #take(number: number): Call | undefined {
    const call = this.#calls.get(number);
    this.#calls.delete(number);
    return call;
  }

  #down(error: LogError): void {
    this.#worker = null;
    this.#up = false;
    if (!this.#closing) this.#health = { ...this.#health, status: 'degraded', detail: error.message };
    this.#rejectCalls(error);
  }

  #rejectCalls(error: LogError): void {
    const calls = [...this.#calls.values()];
    this.#calls.clear();
    for (const call of calls) call.reject(error);
  }

  #scheduleRestart(): void {
    if (this.#closing) return;
    this.#restartTimer = setTimeout(() => {
      this.#restartDelayMs = Math.min(this.#restartDelayMs * 2, LOG_LIMITS.restartMaxMs);
      this.#start().catch((error: LogError) => {
        const failed = error.code === 'log_tampered' || error.code.startsWith('log_key');
        this.#down(error);
        if (failed) {
          this.#failure = error;
          this.#health = { ...this.#health, status: 'failed' };
        } else this.#scheduleRestart();
      });
    }, this.#restartDelayMs);
  }
}

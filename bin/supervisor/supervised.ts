/** One supervised process: started, watched until its /health answers, started again with growing waits when it ends. */
import { type ChildProcess, spawn } from 'node:child_process';
import type { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  BACKOFF_FIRST_MS,
  BACKOFF_MAX_MS,
  EXIT_CONFIG,
  FIRST_STARTS_MAX,
  HEALTH_INTERVAL_MS,
  HEALTH_TIMEOUT_MS,
  STABLE_AFTER_MS,
  STOP_TIMEOUT_MS,
} from './limits.ts';
import type { ProcessReport, ProcessState } from './state.ts';

export interface SupervisedOptions {
  name: string;
  command: string;
  args: string[];
  cwd: string;
  env: NodeJS.ProcessEnv;
  /** Answers 2xx once the process can serve. */
  healthUrl: string;
  healthHeaders?: Record<string, string>;
  /** Its health is not asked for before this: what it depends on is not there yet, and each question would be an error in its log. */
  healthAfter?: Promise<void>;
  /** Output of the process, stdout and stderr alike. */
  onOutput: (name: string, stream: Readable) => void;
  onChange: () => void;
  /** Tests shorten the waits. */
  backoffFirstMs?: number;
  stableAfterMs?: number;
  stopTimeoutMs?: number;
  firstStartsMax?: number;
}

export class Supervised {
  readonly name: string;
  readonly #options: SupervisedOptions;
  readonly #report: ProcessReport;
  readonly #stopping = new AbortController();
  #child: ChildProcess | null = null;
  #wasReady = false;
  #run: Promise<void> | null = null;
  #resolveReady!: () => void;
  #rejectGaveUp!: (error: Error) => void;
  /** Fulfilled when it is ready for the first time. */
  readonly ready: Promise<void>;
  /** Rejected when it will not be started again; never fulfilled. */
  readonly gaveUp: Promise<never>;

  constructor(options: SupervisedOptions) {
    this.name = options.name;
    this.#options = options;
    this.#report = {
      state: 'stopped',
      pid: null,
      restarts: 0,
      since: iso(Date.now()),
      lastExit: null,
      nextStartAt: null,
    };
    this.ready = new Promise((resolve) => {
      this.#resolveReady = resolve;
    });
    this.gaveUp = new Promise((_, reject) => {
      this.#rejectGaveUp = reject;
    });
    this.gaveUp.catch(() => {});
  }

  get report(): ProcessReport {
    return { ...this.#report };
  }

  start(): void {
    this.#run ??= this.#keepRunning();
  }

  /** Asks it to end, waits, kills it if it does not. Idempotent. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    if (this.#child) {
      this.#set('stopping');
      this.#child.kill('SIGTERM');
      const force = setTimeout(() => this.#child?.kill('SIGKILL'), this.#options.stopTimeoutMs ?? STOP_TIMEOUT_MS);
      await this.#run;
      clearTimeout(force);
    } else {
      await this.#run;
    }
    if (this.#report.state !== 'failed') this.#set('stopped');
  }

  /** No more patience (second Ctrl-C). */
  kill(): void {
    this.#stopping.abort();
    this.#child?.kill('SIGKILL');
  }

  async #keepRunning(): Promise<void> {
    const { backoffFirstMs = BACKOFF_FIRST_MS, stableAfterMs = STABLE_AFTER_MS } = this.#options;
    let waitMs = backoffFirstMs;
    for (let starts = 1; !this.#stopping.signal.aborted; starts++) {
      const end = await this.#runOnce();
      this.#report.lastExit = end.words;
      if (this.#stopping.signal.aborted) break;
      if (!this.#mayRestart(starts, end.code)) return;
      if (end.readyForMs >= stableAfterMs) waitMs = backoffFirstMs;
      this.#set('waiting_to_restart', waitMs);
      await sleep(waitMs, undefined, { signal: this.#stopping.signal }).catch(() => {});
      this.#report.restarts++;
      waitMs = Math.min(waitMs * 2, BACKOFF_MAX_MS);
    }
  }

  #mayRestart(starts: number, code: number | null): boolean {
    const isMisconfigured = code === EXIT_CONFIG;
    const isHopeless = !this.#wasReady && starts >= (this.#options.firstStartsMax ?? FIRST_STARTS_MAX);
    if (!isMisconfigured && !isHopeless) return true;
    this.#set('failed');
    const times = isMisconfigured ? 'because of its configuration' : `${starts} times in a row`;
    this.#rejectGaveUp(
      new Error(`The ${this.name} did not start ${times} (${this.#report.lastExit}); its log above says why.`),
    );
    return false;
  }

  async #runOnce(): Promise<{ code: number | null; words: string; readyForMs: number }> {
    const { command, args, cwd, env, name, onOutput } = this.#options;
    // A process group of its own: Ctrl-C reaches the supervisor alone, which then stops its processes in order.
    const child = spawn(command, args, {
      cwd,
      env,
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
      detached: process.platform !== 'win32',
    });
    this.#child = child;
    this.#report.pid = child.pid ?? null;
    this.#set('starting');
    if (child.stdout) onOutput(name, child.stdout);
    if (child.stderr) onOutput(name, child.stderr);
    const ended = new AbortController();
    let readyAt: number | null = null;
    const watching = this.#untilHealthy(ended.signal).then((isHealthy) => {
      if (!isHealthy) return;
      readyAt = Date.now();
      this.#wasReady = true;
      if (!this.#stopping.signal.aborted) this.#set('ready');
      this.#resolveReady();
    });
    const end = await new Promise<{ code: number | null; words: string }>((resolve) => {
      child.on('error', (error) => resolve({ code: null, words: `it could not be started: ${error.message}` }));
      child.on('exit', (code, signal) =>
        resolve({ code, words: signal ? `killed by ${signal}` : `exit code ${code}` }),
      );
    });
    ended.abort();
    await watching;
    this.#child = null;
    this.#report.pid = null;
    return { ...end, readyForMs: readyAt === null ? 0 : Date.now() - readyAt };
  }

  async #untilHealthy(signal: AbortSignal): Promise<boolean> {
    const { healthUrl, healthHeaders = {}, healthAfter } = this.#options;
    await Promise.race([healthAfter, aborted(signal)]);
    while (!signal.aborted) {
      const timeout = AbortSignal.any([signal, AbortSignal.timeout(HEALTH_TIMEOUT_MS)]);
      const response = await fetch(healthUrl, { headers: healthHeaders, signal: timeout }).catch(() => null);
      await response?.body?.cancel().catch(() => {});
      if (response?.ok && !signal.aborted) return true;
      await sleep(HEALTH_INTERVAL_MS, undefined, { signal }).catch(() => {});
    }
    return false;
  }

  #set(state: ProcessState, waitMs: number | null = null): void {
    const now = Date.now();
    this.#report.state = state;
    this.#report.since = iso(now);
    this.#report.nextStartAt = waitMs === null ? null : iso(now + waitMs);
    this.#options.onChange();
  }
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    signal.addEventListener('abort', () => resolve(), { once: true });
  });
}

function iso(timeMs: number): string {
  return new Date(timeMs).toISOString();
}

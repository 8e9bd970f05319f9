/**
 * Reads contributions in processes of their own, each with its own connection to the same database, so that requests are served meanwhile and
 * nothing that a file does can harm the gateway. Threads would not do: one that is ended (out of memory, say) while it is inside the database
 * library takes the whole process with it.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createRequire } from 'node:module';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { limits } from '../../limits.ts';
import { type Ingester, ingesterOf } from './ingester.ts';
import type { IngestTask } from './messages.ts';
import type { FromProcess, IngestDatabase, ToProcess, WireTask } from './process-messages.ts';
import type { Outcome } from './work.ts';

/** By its place, since the gateway may run in any folder. */
const TSX = pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href;
const MAIN = fileURLToPath(new URL('./process.ts', import.meta.url));

interface Running {
  resolve: (outcome: Outcome<unknown>) => void;
  reject: (error: Error) => void;
}

/** One process; one task at a time. */
class IngestProcess {
  readonly child: ChildProcess;
  readonly ended: Promise<unknown>;
  gone = false;
  #running: Running | null = null;
  /** When it last said anything. */
  #heardAt = 0;

  constructor(database: IngestDatabase) {
    const flags = [
      `--max-old-space-size=${limits.ingestHeapMb}`,
      `--max-semi-space-size=${limits.ingestYoungMb}`,
      '--import',
      TSX,
    ];
    this.child = spawn(process.execPath, [...flags, MAIN], {
      // Nothing of this process's secrets; those of the database come by message.
      env: {
        PATH: process.env.PATH,
        TMPDIR: process.env.TMPDIR,
        TEMP: process.env.TEMP,
        SystemRoot: process.env.SystemRoot,
        // glibc gives every thread an arena of its own, and none gives back what it had once.
        MALLOC_ARENA_MAX: '2',
      },
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
      serialization: 'advanced',
      windowsHide: true,
    });
    this.ended = once(this.child, 'close').catch(() => {});
    this.child.on('message', (message) => this.#told(message as FromProcess));
    this.child.on('error', () => this.#over());
    this.child.on('close', () => this.#over());
    this.#say({ type: 'open', database });
  }

  run(task: WireTask, signal: AbortSignal): Promise<Outcome<unknown>> {
    if (signal.aborted) return Promise.resolve({ stopped: true });
    this.#heardAt = performance.now();
    const watch = setInterval(() => {
      if (performance.now() - this.#heardAt > limits.ingestSilenceMsMax) this.child.kill('SIGKILL');
    }, limits.ingestAliveEveryMs);
    let patience: NodeJS.Timeout | undefined;
    const stop = () => {
      this.#say({ type: 'stop' });
      patience = setTimeout(() => this.child.kill('SIGKILL'), limits.ingestStopMs);
    };
    signal.addEventListener('abort', stop, { once: true });
    return new Promise<Outcome<unknown>>((resolve, reject) => {
      this.#running = { resolve, reject };
      this.#say({ type: 'task', task });
      if (this.gone) this.#over();
    }).finally(() => {
      clearInterval(watch);
      clearTimeout(patience);
      signal.removeEventListener('abort', stop);
    });
  }

  async end(): Promise<void> {
    this.child.kill('SIGKILL');
    await this.ended;
  }

  #say(message: ToProcess): void {
    if (!this.gone) this.child.send(message, () => {});
  }

  #told(message: FromProcess): void {
    this.#heardAt = performance.now();
    if (message.type === 'alive') return;
    const running = this.#running;
    this.#running = null;
    if (message.type === 'done') running?.resolve(message.outcome);
    else running?.reject(new Error(`a contribution could not be read: ${message.message}`));
  }

  #over(): void {
    this.gone = true;
    const running = this.#running;
    this.#running = null;
    running?.reject(new Error('the process that reads contributions has ended'));
  }
}

/** Processes are started when there is work and ended when there was none for a while. */
export function processIngester(database: IngestDatabase): Ingester & { readonly processes: readonly IngestProcess[] } {
  let processes: IngestProcess[] = [];
  const idle = new Map<IngestProcess, NodeJS.Timeout>();
  const waiting: ((process: IngestProcess) => void)[] = [];
  let closed = false;

  /** @param short what does not take long, and somebody waits for: it has a process besides those that read. */
  const take = (short: boolean): Promise<IngestProcess> => {
    processes = processes.filter((one) => !one.gone);
    const free = processes.find((one) => idle.has(one));
    if (free !== undefined) {
      clearTimeout(idle.get(free));
      idle.delete(free);
      return Promise.resolve(free);
    }
    if (processes.length >= limits.ingestsAtOnce + (short ? 1 : 0))
      return new Promise((resolve) => waiting.push(resolve));
    const made = new IngestProcess(database);
    processes.push(made);
    return Promise.resolve(made);
  };
  const give = (used: IngestProcess) => {
    const next = waiting.shift();
    if (used.gone) {
      processes = processes.filter((one) => one !== used);
      if (next === undefined || closed) return;
      const made = new IngestProcess(database);
      processes.push(made);
      next(made);
    } else if (next !== undefined) next(used);
    else {
      const timer = setTimeout(() => {
        idle.delete(used);
        processes = processes.filter((one) => one !== used);
        void used.end();
      }, limits.ingestIdleMs);
      timer.unref();
      idle.set(used, timer);
    }
  };
  const run = async (task: IngestTask, signal: AbortSignal): Promise<Outcome<unknown>> => {
    if (closed) return { stopped: true };
    const process = await take(task.type === 'erase');
    try {
      return await process.run(wire(task), signal);
    } finally {
      give(process);
    }
  };
  const close = async () => {
    closed = true;
    for (const timer of idle.values()) clearTimeout(timer);
    idle.clear();
    await Promise.all(processes.map((one) => one.end()));
    processes = [];
  };
  return {
    ...ingesterOf(run, close),
    get processes() {
      return processes;
    },
  };
}

function wire(task: IngestTask): WireTask {
  if (task.type !== 'ingest') return task;
  const { privateKey, ...rest } = task;
  return { ...rest, keyDer: privateKey.export({ format: 'der', type: 'pkcs8' }) };
}

/**
 * The programs under measurement, each with its descendants. Only one of them may run at a time: ggml's threads spin while
 * they wait, so the other one is stopped with SIGSTOP while its rival is measured.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { createWriteStream, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { projectFolder } from './report.ts';

const START_TIMEOUT_MS = 120_000;
const STOP_TIMEOUT_MS = 20_000;
const POLL_MS = 100;

export async function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const probe = createServer();
    probe.on('error', reject);
    probe.listen(0, '127.0.0.1', () => {
      const address = probe.address();
      probe.close(() => resolve(typeof address === 'object' && address ? address.port : 0));
    });
  });
}

export const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** [pid, parent] of every process; the supervisor's children have groups of their own, so a process group is not enough. */
function processTable(): [number, number][] {
  const listed = spawnSync('ps', ['-A', '-o', 'pid=,ppid='], { encoding: 'utf8' });
  return (listed.stdout ?? '')
    .trim()
    .split('\n')
    .map((line) => line.trim().split(/\s+/).map(Number) as [number, number]);
}

/** `root` and all that descend from it, parents first. */
export function familyOf(root: number, table: readonly (readonly [number, number])[]): number[] {
  const family = [root];
  for (let i = 0; i < family.length; i++) for (const [pid, parent] of table) if (parent === family[i]) family.push(pid);
  return family;
}

/** A child and its descendants; stderr and stdout go to a log file whose tail is quoted when the child dies. */
export class ProcessTree {
  readonly name: string;
  readonly logFile: string;
  readonly pid: number;
  private readonly child: ChildProcess;
  private exited = false;
  private readonly onExit = () => this.signal('SIGKILL');

  constructor(
    name: string,
    command: string,
    args: string[],
    options: { cwd: string; env: NodeJS.ProcessEnv; logFile: string },
  ) {
    this.name = name;
    this.logFile = options.logFile;
    this.child = spawn(command, args, {
      cwd: options.cwd,
      env: options.env,
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    if (this.child.pid === undefined) throw new Error(`${name}: cannot start ${command}`);
    this.pid = this.child.pid;
    const log = createWriteStream(options.logFile);
    this.child.stdout?.pipe(log, { end: false });
    this.child.stderr?.pipe(log, { end: false });
    this.child.on('exit', () => {
      this.exited = true;
    });
    // A stopped process would outlive us for ever.
    process.on('exit', this.onExit);
  }

  private family(): number[] {
    return familyOf(this.pid, processTable());
  }

  private signal(signal: NodeJS.Signals): void {
    for (const pid of this.family()) {
      try {
        process.kill(pid, signal);
      } catch {
        // Ended meanwhile.
      }
    }
  }

  get alive(): boolean {
    return !this.exited;
  }

  pause(): void {
    this.signal('SIGSTOP');
  }

  resume(): void {
    this.signal('SIGCONT');
  }

  /** CPU milliseconds that the processes have used so far (Linux; NaN elsewhere). Resolution: one clock tick, 10 ms. */
  cpuMs(): number {
    if (process.platform !== 'linux') return Number.NaN;
    let ticks = 0;
    for (const pid of this.family()) {
      try {
        const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
        // The name in brackets may hold blanks; the fields after it are state, ppid, …, utime (12th), stime (13th).
        const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
        ticks += Number(fields[11]) + Number(fields[12]);
      } catch {
        // Ended meanwhile.
      }
    }
    return ticks * 10;
  }

  logTail(): string {
    return existsSync(this.logFile) ? readFileSync(this.logFile, 'utf8').slice(-3000) : '';
  }

  /** Waits until `url` answers 200. */
  async ready(url: string): Promise<void> {
    const deadline = Date.now() + START_TIMEOUT_MS;
    while (Date.now() < deadline) {
      if (!this.alive) throw new Error(`${this.name} ended while starting:\n${this.logTail()}`);
      try {
        const response = await fetch(url, { signal: AbortSignal.timeout(2000) });
        await response.arrayBuffer();
        if (response.status === 200) return;
      } catch {
        // Not listening yet.
      }
      await sleep(POLL_MS);
    }
    throw new Error(`${this.name} was not ready after ${START_TIMEOUT_MS / 1000} s:\n${this.logTail()}`);
  }

  async stop(): Promise<void> {
    this.resume();
    const family = this.family();
    // The first process tells the others in its own order; whoever is left after a while is killed.
    if (this.alive) this.child.kill('SIGTERM');
    const deadline = Date.now() + STOP_TIMEOUT_MS;
    while (this.alive && Date.now() < deadline) await sleep(POLL_MS);
    if (this.alive) {
      for (const pid of family) {
        try {
          process.kill(pid, 'SIGKILL');
        } catch {
          // Ended meanwhile.
        }
      }
    }
    process.off('exit', this.onExit);
  }
}

export interface PeerOptions {
  folder: string;
  modelPath: string;
  loraPaths: string[];
  threads: number;
  parallel: number;
  logFolder: string;
}

export interface Server {
  tree: ProcessTree;
  url: string;
}

/** Where llama-server and friends lie, or undefined with the sentence to print. */
export function peersFolder(): { folder?: string; sentence: string } {
  const folder = process.env.MODELFACTORY_PEERS ?? path.join(projectFolder, '..', 'shared', 'peers');
  const program = path.join(folder, 'llama.cpp', 'llama-server');
  if (existsSync(program)) return { folder, sentence: '' };
  return { sentence: 'Peer columns skipped: no llama.cpp/llama-server in the folder that MODELFACTORY_PEERS names.' };
}

export async function startLlamaServer(options: PeerOptions): Promise<Server> {
  const folder = path.join(options.folder, 'llama.cpp');
  const port = await freePort();
  const args = ['-m', options.modelPath, '-t', String(options.threads), '-tb', String(options.threads)];
  if (options.loraPaths.length > 0) args.push('--lora', options.loraPaths.join(','), '--lora-init-without-apply');
  args.push('-np', String(options.parallel), '-c', '8192', '--host', '127.0.0.1', '--port', String(port), '--no-webui');
  const tree = new ProcessTree('llama-server', path.join(folder, 'llama-server'), args, {
    cwd: options.logFolder,
    env: { ...process.env, LD_LIBRARY_PATH: folder },
    logFile: path.join(options.logFolder, 'llama-server.log'),
  });
  const url = `http://127.0.0.1:${port}`;
  await tree.ready(`${url}/health`);
  return { tree, url };
}

/** First line of what `llama-server --version` says. */
export function llamaServerVersion(folder: string): string {
  const home = path.join(folder, 'llama.cpp');
  const said = spawnSync(path.join(home, 'llama-server'), ['--version'], {
    encoding: 'utf8',
    env: { ...process.env, LD_LIBRARY_PATH: home },
  });
  const match = `${said.stdout}${said.stderr}`.match(/version:\s*(.*)/);
  return match?.[1]?.trim() ?? 'unknown';
}

export interface OurServer extends Server {
  adminKey: string;
  dataFolder: string;
  stop(): Promise<void>;
}

/** What `npm start` runs once everything is installed. */
const SUPERVISE = `import { start } from ${JSON.stringify(pathToFileURL(path.join(projectFolder, 'bin/supervisor/main.ts')).href)};
process.exitCode = await start();`;

/** Starts the product as a user would (supervisor, gateway, daemon), with a data folder of its own. */
export async function startOurs(options: { modelPath: string; env?: Record<string, string> }): Promise<OurServer> {
  const dataFolder = mkdtempSync(path.join(os.tmpdir(), 'modelfactory-bench-'));
  const port = await freePort();
  const tree = new ProcessTree(
    'modelfactory',
    process.execPath,
    ['--import', 'tsx', '--input-type=module', '--eval', SUPERVISE],
    {
      cwd: projectFolder,
      env: {
        ...process.env,
        HOST: '127.0.0.1',
        PORT: String(port),
        MODELFACTORY_DATA: dataFolder,
        MODELFACTORY_BASE: options.modelPath,
        ...options.env,
      },
      logFile: path.join(dataFolder, 'supervisor.log'),
    },
  );
  const stop = async () => {
    await tree.stop();
    rmSync(dataFolder, { recursive: true, force: true });
  };
  const url = `http://127.0.0.1:${port}`;
  try {
    await tree.ready(`${url}/health`);
    const adminKey = readFileSync(path.join(dataFolder, 'admin.key'), 'utf8').trim();
    return { tree, url, adminKey, dataFolder, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** An ordinary key with limits set (high enough never to bite), so that the measured path checks and counts them. */
export async function createLimitedKey(server: { url: string; adminKey: string }): Promise<string> {
  const response = await fetch(`${server.url}/api/keys`, {
    method: 'POST',
    headers: { authorization: `Bearer ${server.adminKey}`, 'content-type': 'application/json' },
    body: JSON.stringify({
      name: 'bench',
      requests_per_minute: 1_000_000,
      tokens_per_minute: 1_000_000_000,
      concurrency: 64,
      budget_micros: 1_000_000_000_000,
    }),
  });
  const text = await response.text();
  if (!response.ok) throw new Error(`making a key: status ${response.status}: ${text.slice(0, 500)}`);
  const key = (JSON.parse(text) as { key?: string }).key;
  if (!key) throw new Error(`making a key: no "key" in ${text.slice(0, 200)}`);
  return key;
}

/** Runs gateway and daemon side by side until it is told to stop. */
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join, relative, resolve } from 'node:path';
import type { Readable } from 'node:stream';
import { pathToFileURL } from 'node:url';
import { type BaseModelFile, ensureBaseModel, FetchError } from '../../daemon/models/fetch.ts';
import { progressPrinter } from '../../daemon/models/progress.ts';
import { fileProblem } from '../setup/file-problem.mjs';
import { passOn } from './log.ts';
import { checkListenable, freePort, urlFor } from './ports.ts';
import { readState, removeState, type SupervisorState, writeState } from './state.ts';
import { Supervised } from './supervised.ts';

const root = resolve(import.meta.dirname, '..', '..');

/** Everything that is read from the environment, in one place. */
export interface StartSettings {
  host: string;
  port: number;
  dataDir: string;
  /** Daemons that somebody else runs; null = start one here. */
  daemons: string | null;
  daemonToken: string;
}

export function readSettings(env: NodeJS.ProcessEnv = process.env): StartSettings {
  const port = Number(env.PORT || 8787);
  if (!Number.isInteger(port) || port < 1 || port > 65_535)
    throw new StartError(`PORT is "${env.PORT}"; it must be a number from 1 to 65535.`);
  return {
    host: env.HOST || '127.0.0.1',
    port,
    dataDir: resolve(root, env.MODELFACTORY_DATA || 'data'),
    daemons: env.MODELFACTORY_DAEMONS?.trim() || null,
    daemonToken: env.MODELFACTORY_DAEMON_TOKEN || randomBytes(32).toString('base64url'),
  };
}

/** An error that the person at the terminal can do something about. */
export class StartError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'StartError';
  }
}

/** How a process is started; tests put small scripts in their place. */
export interface Programs {
  gateway: string[];
  daemon: string[];
}

const PROGRAMS: Programs = {
  gateway: nodeArguments(join(root, 'gateway', 'main.ts')),
  daemon: nodeArguments(join(root, 'daemon', 'main.ts')),
};

function nodeArguments(file: string): string[] {
  const tether = pathToFileURL(join(root, 'bin', 'supervisor', 'tether.mjs')).href;
  return ['--import', 'tsx', '--import', tether, file];
}

/** Returns the exit code once everything has stopped. */
export async function start(programs: Programs = PROGRAMS): Promise<number> {
  // A terminal that was closed takes no more lines; what runs is still ended in order.
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});
  try {
    const settings = readSettings();
    prepareDataFolder(settings.dataDir);
    await refuseSecondStart(settings);
    const model = settings.daemons === null ? await fetchModel(settings) : null;
    return await supervise(settings, programs, model);
  } catch (error) {
    const sentence = error instanceof StartError || error instanceof FetchError ? error.message : fileProblem(error);
    if (sentence === null) throw error;
    process.stderr.write(`error: ${sentence}\n`);
    return 1;
  }
}

/** Said here in a sentence, before two processes say it in stack traces. */
function prepareDataFolder(dataDir: string): void {
  const probe = join(dataDir, `.probe-${process.pid}`);
  try {
    mkdirSync(dataDir, { recursive: true });
    writeFileSync(probe, '', { flag: 'wx' });
    rmSync(probe);
  } catch (error) {
    const problem = fileProblem(error);
    if (problem === null) throw error;
    throw new StartError(
      `The data folder cannot be used: ${problem.replace(probe, dataDir)} Set MODELFACTORY_DATA to a folder of yours.`,
    );
  }
}

/** Two daemons on one data folder would both append to one log, and two gateways want one port. */
async function refuseSecondStart({ host, port, dataDir }: StartSettings): Promise<void> {
  const other = readState(join(dataDir, 'supervisor.json'));
  if (other && other.pid !== process.pid && isAlive(other.pid)) {
    const answer = await fetch(`${other.url}/health`, { signal: AbortSignal.timeout(2_000) }).catch(() => null);
    if (answer) {
      throw new StartError(
        `modelfactory runs already on this data folder (process ${other.pid}, ${other.url}). Stop it first (Ctrl-C there, or: kill ${other.pid}), or give this one its own: MODELFACTORY_DATA=./data2 PORT=${port + 1} npm start`,
      );
    }
  }
  try {
    await checkListenable(port, host);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    const why = code === 'EADDRINUSE' ? 'another program uses it' : String(code);
    throw new StartError(
      `Cannot listen on ${host} port ${port}: ${why}. Choose another with HOST and PORT, e.g. PORT=${port + 1} npm start`,
    );
  }
}

async function fetchModel({ dataDir }: StartSettings): Promise<BaseModelFile> {
  const bar = progressPrinter(process.stderr);
  const onNotice = (line: string) => {
    bar.finish();
    process.stderr.write(`${line}\n`);
  };
  const model = await ensureBaseModel(process.env.MODELFACTORY_BASE, { dataDir, onProgress: bar.show, onNotice });
  bar.finish();
  return model;
}

async function supervise(settings: StartSettings, programs: Programs, model: BaseModelFile | null): Promise<number> {
  const { host, port, dataDir, daemonToken } = settings;
  const url = urlFor(host, port);
  const statePath = join(dataDir, 'supervisor.json');
  const daemonPort = settings.daemons === null ? await freePort() : 0;
  const daemonUrl = `http://127.0.0.1:${daemonPort}`;
  const env = {
    ...process.env,
    HOST: host,
    PORT: String(port),
    MODELFACTORY_DATA: dataDir,
    MODELFACTORY_DAEMONS: settings.daemons ?? daemonUrl,
    MODELFACTORY_DAEMON_TOKEN: daemonToken,
    MODELFACTORY_SUPERVISOR_STATE: statePath,
    // A relative path is relative to where we were started; the processes run elsewhere.
    ...(model?.origin === 'file' && { MODELFACTORY_BASE: model.path }),
  };
  const supervised: Supervised[] = [];
  const startedAt = new Date().toISOString();
  const onChange = () => {
    const processes = Object.fromEntries(supervised.map((one) => [one.name, one.report]));
    try {
      writeState(statePath, { pid: process.pid, startedAt, url, processes } satisfies SupervisorState);
    } catch (error) {
      // A full disk must not end what still runs.
      process.stderr.write(`${statePath} cannot be written: ${(error as Error).message}\n`);
    }
  };
  const common = {
    command: process.execPath,
    cwd: root,
    onOutput: (name: string, stream: Readable) => passOn(name, stream, process.stderr),
    onChange,
  };
  // The daemon first, and stopped last: the gateway ends its streams with the daemon still there.
  if (settings.daemons === null) {
    supervised.push(
      new Supervised({
        ...common,
        name: 'daemon',
        args: programs.daemon,
        env: { ...env, MODELFACTORY_DAEMON_PORT: String(daemonPort) },
        healthUrl: `${daemonUrl}/health`,
        healthHeaders: { authorization: `Bearer ${daemonToken}` },
      }),
    );
  }
  supervised.push(
    new Supervised({
      ...common,
      name: 'gateway',
      args: programs.gateway,
      env,
      healthUrl: `${url}/health`,
      ...(supervised[0] && { healthAfter: supervised[0].ready }),
    }),
  );

  const stop = untilSignal(supervised);
  const gaveUp = Promise.race(supervised.map((one) => one.gaveUp));
  for (const one of supervised) one.start();
  let code = 0;
  try {
    const ready = Promise.all(supervised.map((one) => one.ready)).then(() => 'ready' as const);
    if ((await Promise.race([ready, stop, gaveUp])) === 'ready') {
      process.stdout.write(banner(url, dataDir, model?.id ?? null));
      await Promise.race([stop, gaveUp]);
    }
  } catch (error) {
    process.stderr.write(`error: ${(error as Error).message}\n`);
    code = 1;
  }
  for (const one of supervised.toReversed()) await one.stop();
  removeState(statePath);
  return code;
}

/** Fulfilled at the first signal; the second one ends all this at once. */
function untilSignal(supervised: Supervised[]): Promise<'stop'> {
  return new Promise((resolve) => {
    let isAsked = false;
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
      process.on(signal, () => {
        if (isAsked) {
          for (const one of supervised) one.kill();
          return;
        }
        isAsked = true;
        process.stderr.write('Stopping (what is under way is finished first; once more to stop at once) …\n');
        resolve('stop');
      });
    }
  });
}

/** What to do next, with lines that work as pasted. */
export function banner(url: string, dataDir: string, model: string | null): string {
  const keyPath = join(dataDir, 'admin.key');
  const fromHere = relative(process.cwd(), keyPath);
  const key = shellWord(fromHere.startsWith('..') || fromHere === '' ? keyPath : fromHere);
  // With a limit: at temperature 1 a small model may ramble on to the end of its context.
  const body = JSON.stringify({
    model: model ?? 'MODEL',
    max_tokens: 60,
    messages: [{ role: 'user', content: 'Hello' }],
  });
  const lines = [
    '',
    `modelfactory is ready at ${url}`,
    `  admin key   ${keyPath}${existsSync(keyPath) ? '' : ' (not there: another key store is in use)'}`,
    '  try it      ' +
      `curl ${url}/v1/chat/completions -H "Authorization: Bearer $(cat ${key})" -H 'content-type: application/json' -d ${shellWord(body)}`,
    '  stop        Ctrl-C',
    '',
  ];
  return `${lines.join('\n')}\n`;
}

/** Quoted for a POSIX shell where it needs to be. */
function shellWord(text: string): string {
  return /^[\w./:@%+,-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

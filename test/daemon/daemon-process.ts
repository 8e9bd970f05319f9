/** Starts `daemon/main.ts` as a process of its own, as the supervisor does. */
import { type ChildProcess, spawn } from 'node:child_process';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import type { GenerateEvent } from '../../daemon/protocol.ts';

const root = resolve(import.meta.dirname, '..', '..');
export const TOKEN = 'a-token-of-at-least-thirty-two-characters';

export interface DaemonProcess {
  url: string;
  child: ChildProcess;
  /** All that it wrote. */
  output: string[];
  /** Exit code, or the signal's name. */
  exited: Promise<number | string>;
  call(method: string, path: string, body?: unknown): Promise<Response>;
  generate(body: object, signal?: AbortSignal): Promise<Response>;
}

/** Resolves when it is ready, or rejects with what it wrote when it ends before. */
export async function startDaemon(env: Record<string, string>): Promise<DaemonProcess> {
  const child = spawn(process.execPath, ['--import', 'tsx', join(root, 'daemon', 'main.ts')], {
    cwd: root,
    env: {
      ...process.env,
      MODELFACTORY_DEVICE: 'cpu',
      MODELFACTORY_DAEMON_PORT: '0',
      MODELFACTORY_DAEMON_TOKEN: TOKEN,
      MODELFACTORY_DAEMON_HOST: '127.0.0.1',
      ...env,
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const output: string[] = [];
  const exited = new Promise<number | string>((done) => child.on('exit', (code, signal) => done(code ?? signal ?? -1)));
  const port = await new Promise<number>((done, fail) => {
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream as NodeJS.ReadableStream }).on('line', (line) => {
        output.push(line);
        if (!line.startsWith('{')) return;
        const fields = JSON.parse(line) as { ready?: boolean; port?: number };
        if (fields.ready === true && fields.port !== undefined) done(fields.port);
      });
    }
    void exited.then((code) => setTimeout(() => fail(new Error(`exit ${code}: ${output.join('\n')}`)), 50));
  });
  const url = `http://127.0.0.1:${port}`;
  const headers = { authorization: `Bearer ${TOKEN}`, 'content-type': 'application/json' };
  const call = (method: string, path: string, body?: unknown) =>
    fetch(`${url}${path}`, { method, headers, ...(body === undefined ? {} : { body: JSON.stringify(body) }) });
  return {
    url,
    child,
    output,
    exited,
    call,
    generate: (body, signal) =>
      fetch(`${url}/generate`, { method: 'POST', headers, body: JSON.stringify(body), ...(signal ? { signal } : {}) }),
  };
}

export async function readEvents(response: Response): Promise<GenerateEvent[]> {
  const text = await response.text();
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as GenerateEvent);
}

export function textOf(events: GenerateEvent[]): string {
  return events.map((e) => (e.type === 'delta' ? (e.content ?? '') : '')).join('');
}

/** The whole product as a person starts it: the supervisor with gateway and daemon, on a free port, in a folder of its own. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import OpenAI from 'openai';
import { freePort } from '../../bin/supervisor/ports.ts';
import { readState, type SupervisorState } from '../../bin/supervisor/state.ts';
import type { ReceiptBundle } from '../../daemon/protocol.ts';
import { PATIENCE_MS } from '../support/patience.ts';

export const root = resolve(import.meta.dirname, '..', '..');

/** Id of the default base model. */
export const BASE = 'smollm2-135m-instruct';
/** Prices where nothing else is set, in micro-units per million tokens. */
export const PRICE = { inputMicrosPerMillion: 100_000, outputMicrosPerMillion: 400_000, currency: 'USD' };

const START = `import { start } from ${JSON.stringify(join(root, 'bin', 'supervisor', 'main.ts'))}; process.exitCode = await start();`;

export interface Key {
  id: string;
  key: string;
  spent_micros: number;
  reserved_micros: number;
}

export class Product {
  readonly port: number;
  readonly url: string;
  readonly folder: string;
  readonly dataDir: string;
  readonly #child: ChildProcess;
  readonly #closed: Promise<unknown>;
  #output = '';

  private constructor(port: number, folder: string, env: Record<string, string>) {
    this.port = port;
    this.url = `http://127.0.0.1:${port}`;
    this.folder = folder;
    this.dataDir = join(folder, 'data');
    // Settings of the person who runs the tests must not reach the product.
    const inherited = Object.fromEntries(
      Object.entries(process.env).filter(
        ([name]) => !/^(MODELFACTORY_(?!CACHE)|HOST$|PORT$|NODE_OPTIONS$|VITEST)/.test(name),
      ),
    );
    this.#child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '--eval', START], {
      cwd: root,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...inherited, NODE_ENV: 'production', PORT: String(port), MODELFACTORY_DATA: this.dataDir, ...env },
    });
    this.#closed = new Promise((done) => this.#child.on('close', done));
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream?.on('data', (chunk) => {
        this.#output = (this.#output + chunk).slice(-200_000);
      });
    }
  }

  /** `prepare` is given the data folder before anything runs. */
  static async start(
    env: Record<string, string> = {},
    prepare: (dataDir: string) => void = () => {},
  ): Promise<Product> {
    const folder = mkdtempSync(join(tmpdir(), 'modelfactory-e2e-'));
    prepare(join(folder, 'data'));
    const product = new Product(await freePort(), folder, env);
    try {
      await until('the product is ready', () => product.output.includes('modelfactory is ready at'));
      return product;
    } catch (error) {
      const output = product.output;
      await product.stop();
      throw new Error(`${(error as Error).message}\n${output.slice(-4000)}`);
    }
  }

  /** What it wrote, or the end of it. */
  get output(): string {
    return this.#output;
  }
  get adminKey(): string {
    return readFileSync(join(this.dataDir, 'admin.key'), 'utf8').trim();
  }
  /** Verifier key of its log, as its owner would publish it. */
  get vkey(): string {
    return readFileSync(join(this.dataDir, 'keys', 'log.vkey'), 'utf8').trim();
  }
  get state(): SupervisorState | null {
    return readState(join(this.dataDir, 'supervisor.json'));
  }
  pid(name: 'daemon' | 'gateway'): number {
    const pid = this.state?.processes[name]?.pid;
    if (pid == null) throw new Error(`${name} is not running`);
    return pid;
  }

  /** The official SDK, as an application uses it. Nothing is retried: what fails must be seen. */
  client(key: string = this.adminKey): OpenAI {
    return new OpenAI({ baseURL: `${this.url}/v1`, apiKey: key, maxRetries: 0 });
  }

  /** Any body but a string, bytes or a form is sent as JSON. */
  async call(method: string, path: string, body?: unknown, options: CallOptions = {}): Promise<Response> {
    const raw = typeof body === 'string' || body instanceof Uint8Array || body instanceof FormData;
    const headers: Record<string, string> = { authorization: `Bearer ${options.key ?? this.adminKey}` };
    if (body !== undefined && !(body instanceof FormData)) headers['content-type'] = 'application/json';
    return await fetch(`${this.url}${path}`, {
      method,
      headers: { ...headers, ...options.headers },
      ...(body === undefined
        ? {}
        : { body: (raw ? body : JSON.stringify(body)) as string | Uint8Array<ArrayBuffer> | FormData }),
      ...(options.signal && { signal: options.signal }),
    });
  }

  /** The parsed body of a 2xx; anything else throws. */
  async json<T>(method: string, path: string, body?: unknown): Promise<T> {
    const response = await this.call(method, path, body);
    const text = await response.text();
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text.slice(0, 500)}`);
    return JSON.parse(text) as T;
  }

  makeKey(options: object = {}): Promise<Key> {
    return this.json('POST', '/api/keys', { name: 'e2e', ...options });
  }
  async key(id: string): Promise<Key> {
    const { data } = await this.json<{ data: Key[] }>('GET', '/api/keys');
    return data.find((one) => one.id === id) as Key;
  }
  receipt(id: string): Promise<ReceiptBundle> {
    return this.json('GET', `/v1/receipts/${id}`);
  }
  /** An adapter from a folder or file on this machine. */
  addAdapter(name: string, source: string): Promise<{ digest: string; rankMax: number }> {
    return this.json('POST', '/api/adapters', { name, source });
  }
  async metrics(): Promise<string> {
    return await (await this.call('GET', '/metrics')).text();
  }
  async health(): Promise<Health> {
    return (await (await fetch(`${this.url}/health`)).json()) as Health;
  }

  async stop(): Promise<void> {
    this.#child.kill('SIGTERM');
    const force = setTimeout(() => this.#child.kill('SIGKILL'), 15_000);
    await this.#closed;
    clearTimeout(force);
    rmSync(this.folder, { recursive: true, force: true });
  }
}

export interface CallOptions {
  key?: string;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

export interface Health {
  status: string;
  daemons: { status: string; logSize?: number }[];
  supervisor: Record<string, { state: string; restarts: number }>;
}

/** Asks until it is so. Errors of `condition` count as "not yet", and the last one is told. */
export async function until<T>(
  what: string,
  condition: () => T | Promise<T>,
  timeoutMs: number = PATIENCE_MS,
): Promise<NonNullable<T>> {
  const deadline = Date.now() + timeoutMs;
  let last: unknown;
  while (Date.now() < deadline) {
    try {
      const value = await condition();
      if (value) return value as NonNullable<T>;
      last = value;
    } catch (error) {
      last = error;
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`not in ${timeoutMs} ms: ${what} (${last instanceof Error ? last.message : JSON.stringify(last)})`);
}

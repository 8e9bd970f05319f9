/**
 * Documents as chunks, read by a process of its own that may use so much memory and time and no more. A thread would not do: typed arrays
 * do not count as a thread's heap, and some ways to run out of memory end the whole process.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile, stat } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { type Chunk, DocumentError, type DocumentKind } from './document.ts';
import { documentLimits } from './document-limits.ts';
import type { FromReader, ToReader } from './reader.ts';

export { type Chunk, DocumentError, type DocumentKind, documentKindOf } from './document.ts';

export const CHUNK_CHARACTERS_DEFAULT = 1200;

export interface ReadOptions {
  /** About so many UTF-16 units a chunk; kept between 200 and 20,000. */
  chunkCharacters: number;
  signal?: AbortSignal;
  /** Narrower bounds than documentLimits has. */
  bounds?: Partial<Bounds>;
}

interface Bounds {
  workMs: number;
  residentBytesMax: number;
}

/**
 * The file's chunks in order. Ending the iteration, or aborting, ends the process that reads.
 * @throws DocumentError; what `signal` was aborted with
 */
export async function* readDocument(path: string, kind: DocumentKind, options: ReadOptions): AsyncGenerator<Chunk> {
  const { signal } = options;
  signal?.throwIfAborted();
  const { size } = await stat(path);
  if (size > documentLimits.fileBytesMax)
    throw new DocumentError(
      'too_large',
      `The document has ${size} bytes; at most ${documentLimits.fileBytesMax} are read. Split it.`,
    );
  if (size === 0) throw new DocumentError('no_text', 'The document is empty.');
  const chunkCharacters = Math.min(
    documentLimits.chunkCharactersMax,
    Math.max(documentLimits.chunkCharactersMin, Math.floor(options.chunkCharacters)),
  );
  const reader = new Reader(signal, { ...documentLimits, ...options.bounds });
  let any = false;
  try {
    await reader.started();
    let request: ToReader = { open: { path, kind, chunkCharacters } };
    for (;;) {
      const { chunks, done } = await reader.ask(request);
      any ||= chunks.length > 0;
      yield* chunks;
      if (done) break;
      request = {};
    }
  } finally {
    await reader.end();
  }
  if (!any) throw new DocumentError('no_text', 'There is no text in the document.');
}

const ROOT = fileURLToPath(new URL('../../..', import.meta.url));

class Reader {
  readonly #child: ChildProcess;
  readonly #exited: Promise<unknown>;
  readonly #watch: NodeJS.Timeout;
  readonly #signal: AbortSignal | undefined;
  readonly #bounds: Bounds;
  readonly #onAbort = () => this.#stop(this.#signal?.reason);
  #settle: ((message: FromReader | null) => void) | null = null;
  /** Said before it was asked for: that it is ready. */
  #early: FromReader | null = null;
  #worked = 0;
  /** Why it was ended. */
  #why: unknown = null;
  #gone = false;

  constructor(signal: AbortSignal | undefined, bounds: Bounds) {
    this.#bounds = bounds;
    const flags = [
      `--max-old-space-size=${documentLimits.heapMb}`,
      '--disallow-code-generation-from-strings',
      '--import',
      'tsx',
    ];
    this.#child = spawn(process.execPath, [...flags, fileURLToPath(new URL('./reader.ts', import.meta.url))], {
      cwd: ROOT,
      // Nothing of this process's secrets.
      env: {
        PATH: process.env.PATH,
        TMPDIR: process.env.TMPDIR,
        TEMP: process.env.TEMP,
        SystemRoot: process.env.SystemRoot,
      },
      stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
      windowsHide: true,
    });
    this.#exited = once(this.#child, 'close').catch(() => {});
    this.#child.on('error', () => this.#over());
    this.#child.on('close', () => this.#over());
    this.#child.on('message', (message) => {
      const settle = this.#settle;
      this.#settle = null;
      if (settle === null) this.#early = message as FromReader;
      else settle(message as FromReader);
    });
    this.#watch = setInterval(() => void this.#look(), documentLimits.watchMs);
    this.#signal = signal;
    signal?.addEventListener('abort', this.#onAbort, { once: true });
  }

  async started(): Promise<void> {
    const message = await this.#answer(
      documentLimits.startMs,
      () => new Error('the reader of documents does not start'),
    );
    if (message.type !== 'ready') throw new Error('the reader of documents does not start');
  }

  async ask(request: ToReader): Promise<{ chunks: Chunk[]; done: boolean }> {
    if (!this.#gone) this.#child.send(request, () => {});
    const before = performance.now();
    const message = await this.#answer(this.#bounds.workMs - this.#worked, () => {
      const seconds = this.#bounds.workMs / 1000;
      return new DocumentError(
        'timeout',
        `The document was not read within ${seconds} seconds; it is damaged or too large. Split it.`,
      );
    });
    this.#worked += performance.now() - before;
    if (message.type === 'refused') throw new DocumentError(message.code, message.message);
    if (message.type !== 'chunks') throw new Error('the reader of documents answered out of turn');
    return message;
  }

  async end(): Promise<void> {
    clearInterval(this.#watch);
    this.#signal?.removeEventListener('abort', this.#onAbort);
    this.#stop(null);
    await this.#exited;
  }

  async #answer(patienceMs: number, late: () => Error): Promise<FromReader> {
    const timer = setTimeout(() => this.#stop(late()), Math.max(1, patienceMs));
    try {
      const message =
        this.#early ??
        (this.#gone
          ? null
          : await new Promise<FromReader | null>((resolve) => {
              this.#settle = resolve;
            }));
      this.#early = null;
      if (message !== null) return message;
    } finally {
      clearTimeout(timer);
    }
    // It ended by itself: what V8 does when the heap is full.
    throw (
      this.#why ??
      new DocumentError(
        'too_large',
        'The document needs more memory than may be used for it; split it, or send its text.',
      )
    );
  }

  #stop(why: unknown): void {
    this.#why ??= why;
    this.#child.kill('SIGKILL');
  }

  #over(): void {
    this.#gone = true;
    const settle = this.#settle;
    this.#settle = null;
    settle?.(null);
  }

  /** Where the system tells (Linux); elsewhere the reader's own bounds must do. */
  async #look(): Promise<void> {
    if (process.platform !== 'linux' || this.#gone) return;
    const status = await readFile(`/proc/${this.#child.pid}/statm`, 'latin1').catch(() => '');
    const pages = Number(status.split(' ')[1] ?? 0);
    if (pages * PAGE_BYTES > this.#bounds.residentBytesMax)
      this.#stop(
        new DocumentError(
          'too_large',
          'The document needs more memory than may be used for it; split it, or send its text.',
        ),
      );
  }
}

/** Of x86-64 and most ARM systems; on those with larger pages the bound is wider. */
const PAGE_BYTES = 4096;

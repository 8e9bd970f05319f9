/**
 * Datasets on disk: `<root>/<digest>/` holds the examples as they came (`data.ndjson`), their tokens (`tokens.bin`) and what
 * is known of them (`dataset.json`, last touched when somebody last used it). A folder with a digest for a name is always whole: it is
 * made beside and renamed. What nobody needs any more is swept.
 */
import { createHash, randomUUID } from 'node:crypto';
import { mkdir, open, readdir, readFile, rename, rm, stat, statfs, utimes } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { syncDirectory, writeFileDurably } from '../adapters/durable.ts';
import { DaemonError } from '../errors.ts';
import { TRAINING_LIMITS } from '../limits.ts';
import type { BuiltDataset } from './dataset-build.ts';
import { isDiskFull } from './disk.ts';
import type { Dataset } from './protocol.ts';
import type { TokenFileSize } from './token-file.ts';

const DATA_FILE = 'data.ndjson';
const FACTS_FILE = 'dataset.json';
const TEMPORARY = '.tmp-';
const DIGEST = /^[0-9a-f]{64}$/;

const whole = z.number().int().min(0);
const factsSchema = z.object({
  version: z.literal(1),
  /** Tokens are of one vocabulary and one template: those in the base model's file. */
  base: z.string(),
  contextTokens: whole,
  tokensFile: z.string().regex(/^[a-z0-9.-]+$/),
  size: z.object({ tokens: whole, sequences: whole, spans: whole }),
  dataset: z.custom<Dataset>((value) => typeof value === 'object' && value !== null && 'digest' in value),
});
type Facts = z.output<typeof factsSchema>;

/** What a run needs of a dataset. */
export interface DatasetFiles {
  dataset: Dataset;
  tokensPath: string;
  size: TokenFileSize;
}

export interface DatasetStoreOptions {
  root: string;
  baseDigest: string;
  contextTokens: number;
  /** Checks, tokenises and counts, away from this thread. */
  build(source: string, target: string): Promise<BuiltDataset>;
  /** Whether a run that is not over needs it. */
  needed(digest: string): boolean;
  freeBytes?: (path: string) => Promise<number>;
  now?: () => number;
}

interface Usage {
  digest: string;
  usedMs: number;
  bytes: number;
}

export class DatasetStore {
  private readonly options: DatasetStoreOptions;
  /** One at a time per dataset. */
  private readonly busy = new Map<string, Promise<unknown>>();

  private constructor(options: DatasetStoreOptions) {
    this.options = options;
  }

  static async open(options: DatasetStoreOptions): Promise<DatasetStore> {
    await mkdir(options.root, { recursive: true });
    for (const name of await readdir(options.root)) {
      if (name.startsWith(TEMPORARY)) await rm(join(options.root, name), { recursive: true, force: true });
    }
    return new DatasetStore(options);
  }

  /** @throws DaemonError `request_too_large`, `dataset_invalid`, `disk_full` */
  async receive(body: AsyncIterable<Uint8Array>, announcedBytes: number): Promise<Dataset> {
    const { root } = this.options;
    await this.checkRoom(announcedBytes);
    const folder = join(root, `${TEMPORARY}${randomUUID()}`);
    try {
      await mkdir(folder);
      const digest = await receiveFile(join(folder, DATA_FILE), body);
      return await this.alone(digest, async () => {
        const known = await this.facts(digest);
        if (known !== null) return (await this.current(digest, known)).dataset;
        await this.build(folder, digest);
        await rename(folder, join(root, digest));
        await syncDirectory(root);
        return (await this.require(digest)).dataset;
      });
    } catch (error) {
      throw isDiskFull(error) ? diskFull() : error;
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  }

  /** @throws DaemonError `not_found` */
  async get(digest: string): Promise<Dataset> {
    return (await this.files(digest)).dataset;
  }

  /** With tokens of the present base model: tokenised again if they are of another. @throws DaemonError `not_found` */
  async files(digest: string): Promise<DatasetFiles> {
    return await this.alone(digest, async () => {
      const facts = await this.current(digest, await this.require(digest));
      return { dataset: facts.dataset, size: facts.size, tokensPath: join(this.folder(digest), facts.tokensFile) };
    });
  }

  /** Where the examples lie, a TrainingExample a line. @throws DaemonError `not_found` */
  async source(digest: string): Promise<string> {
    await this.require(digest);
    return join(this.folder(digest), DATA_FILE);
  }

  /** @throws DaemonError `not_found` */
  async remove(digest: string): Promise<void> {
    await this.alone(digest, async () => {
      await this.require(digest);
      await this.drop(digest);
    });
  }

  /**
   * Removes what was not used for long; and while there is too much, or less free than `wantedBytes`, what was used longest ago. Never what
   * a run needs or somebody has just used.
   */
  async sweep(wantedBytes = 0): Promise<void> {
    const { root, freeBytes = freeBytesOf, now = Date.now } = this.options;
    const { datasetKeptMs, datasetBusyMs, datasetsBytesMax, datasetsMax, diskReserveBytes } = TRAINING_LIMITS;
    const all = await this.all();
    let count = all.length;
    let bytes = all.reduce((sum, one) => sum + one.bytes, 0);
    for (const { digest, usedMs, bytes: own } of all.sort((a, b) => a.usedMs - b.usedMs)) {
      const idleMs = now() - usedMs;
      if (idleMs < datasetBusyMs) return;
      const much = bytes > datasetsBytesMax || count >= datasetsMax;
      const old = idleMs >= datasetKeptMs;
      if (!old && !much && (await freeBytes(root)) >= wantedBytes + diskReserveBytes) return;
      const removed = await this.alone(digest, async () => {
        if (this.options.needed(digest) || (await this.usedMs(digest)) !== usedMs) return false;
        await this.drop(digest);
        return true;
      });
      if (!removed) continue;
      count -= 1;
      bytes -= own;
    }
  }

  private async all(): Promise<Usage[]> {
    const all: Usage[] = [];
    for (const digest of await readdir(this.options.root)) {
      if (!DIGEST.test(digest)) continue;
      const usedMs = await this.usedMs(digest);
      // Just being removed, or damaged: left for somebody to look at.
      if (usedMs === null) continue;
      let bytes = 0;
      for (const name of await readdir(this.folder(digest)).catch(() => []))
        bytes += (await stat(join(this.folder(digest), name)).catch(() => null))?.size ?? 0;
      all.push({ digest, usedMs, bytes });
    }
    return all;
  }

  private async usedMs(digest: string): Promise<number | null> {
    return (await stat(join(this.folder(digest), FACTS_FILE)).catch(() => null))?.mtimeMs ?? null;
  }

  private async drop(digest: string): Promise<void> {
    const trash = join(this.options.root, `${TEMPORARY}${randomUUID()}`);
    await rename(this.folder(digest), trash);
    await rm(trash, { recursive: true, force: true });
  }

  private async current(digest: string, facts: Facts): Promise<Facts> {
    const { baseDigest, contextTokens } = this.options;
    const tokens = await stat(join(this.folder(digest), facts.tokensFile)).catch(() => null);
    if (tokens !== null && facts.base === baseDigest && facts.contextTokens === contextTokens) return facts;
    await this.build(this.folder(digest), digest);
    await rm(join(this.folder(digest), facts.tokensFile), { force: true });
    return await this.require(digest);
  }

  private async build(folder: string, digest: string): Promise<void> {
    const { baseDigest, contextTokens } = this.options;
    // A new name each time: a run that reads the file of before goes on reading that.
    const tokensFile = `tokens-${randomUUID().slice(0, 8)}.bin`;
    const { dataset, size } = await this.options.build(join(folder, DATA_FILE), join(folder, tokensFile));
    const facts: Facts = {
      version: 1,
      base: baseDigest,
      contextTokens,
      tokensFile,
      size,
      dataset: { digest, ...dataset },
    };
    await writeFileDurably(join(folder, FACTS_FILE), JSON.stringify(facts));
  }

  private async require(digest: string): Promise<Facts> {
    const facts = await this.facts(digest);
    if (facts !== null) return facts;
    throw new DaemonError(
      'not_found',
      `there is no dataset ${digest.slice(0, 12)}… on this machine; send it again`,
      'dataset',
    );
  }

  private async facts(digest: string): Promise<Facts | null> {
    const path = join(this.folder(digest), FACTS_FILE);
    const text = await readFile(path, 'utf8').catch(() => null);
    if (text === null) return null;
    const facts = factsSchema.safeParse(JSON.parse(text));
    if (facts.success) {
      const used = new Date((this.options.now ?? Date.now)());
      await utimes(path, used, used);
      return facts.data;
    }
    throw new Error(`${path} is damaged; delete its folder and send the dataset again`);
  }

  private folder(digest: string): string {
    if (!DIGEST.test(digest))
      throw new DaemonError('not_found', 'a dataset is known by 64 hexadecimal digits', 'dataset');
    return join(this.options.root, digest);
  }

  private async checkRoom(announcedBytes: number): Promise<void> {
    const { root, freeBytes = freeBytesOf } = this.options;
    if (announcedBytes > TRAINING_LIMITS.datasetBytesMax) throw tooLarge();
    // Tokens take about as much as the text that they came from.
    const wanted = 2 * announcedBytes;
    const isShort = async () => (await freeBytes(root)) < wanted + TRAINING_LIMITS.diskReserveBytes;
    const isMany = async () => (await readdir(root)).length >= TRAINING_LIMITS.datasetsMax;
    if ((await isShort()) || (await isMany())) await this.sweep(wanted);
    if (await isShort()) throw diskFull();
    if (await isMany()) {
      throw new DaemonError('overloaded', `there are ${TRAINING_LIMITS.datasetsMax} datasets in use; try again later`);
    }
  }

  private alone<T>(digest: string, work: () => Promise<T>): Promise<T> {
    const result = (this.busy.get(digest) ?? Promise.resolve()).then(work, work);
    const settled: Promise<unknown> = result
      .catch(() => {})
      .finally(() => {
        if (this.busy.get(digest) === settled) this.busy.delete(digest);
      });
    this.busy.set(digest, settled);
    return result;
  }
}

/** Returns the SHA-256 of what came. */
async function receiveFile(path: string, body: AsyncIterable<Uint8Array>): Promise<string> {
  const hash = createHash('sha256');
  const file = await open(path, 'wx', 0o600);
  try {
    let bytes = 0;
    for await (const chunk of body) {
      bytes += chunk.byteLength;
      if (bytes > TRAINING_LIMITS.datasetBytesMax) throw tooLarge();
      hash.update(chunk);
      for (let written = 0; written < chunk.byteLength; ) {
        written += (await file.write(chunk, written, chunk.byteLength - written)).bytesWritten;
      }
    }
    await file.sync();
  } finally {
    await file.close();
  }
  return hash.digest('hex');
}

async function freeBytesOf(path: string): Promise<number> {
  const { bavail, bsize } = await statfs(path);
  return bavail * bsize;
}

function tooLarge(): DaemonError {
  return new DaemonError(
    'request_too_large',
    `a dataset has at most ${TRAINING_LIMITS.datasetBytesMax} bytes; train on a part of it`,
  );
}

function diskFull(): DaemonError {
  return new DaemonError('disk_full', 'the disk has too little room for this dataset; free some space and try again');
}

/**
 * Adapters on disk: `<root>/<digest>/` holds the files as they came, `adapter.json`, a summary, and `pairs.json`, where
 * the weights lie in the file; for adapters made here also `record.json`, how they came to be. A directory with a digest for a name is always whole: imports are made beside it and renamed.
 */
import { randomUUID } from 'node:crypto';
import { type FileHandle, mkdir, open, readdir, readFile, rename, rm, stat, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { z } from 'zod';
import { TARGETS } from '../../addon/types.ts';
import type { AdapterHandle } from '../engine/slots.ts';
import type { BaseShape } from '../models/inspect.ts';
import { syncDirectory, writeFileDurably } from './durable.ts';
import { AdapterError, fromFileError } from './errors.ts';
import { readGgufLora } from './gguf-lora.ts';
import { ADAPTER_LIMITS } from './limits.ts';
import { decodePairs, encodePairs, PAIRS_FILE } from './pair-table.ts';
import type { ParsedAdapter } from './parsed.ts';
import { parsePeft } from './peft.ts';
import { parseSafetensorsHeader, safetensorsHeaderBytes } from './safetensors.ts';
import { digestWeights } from './weights.ts';

export const CONFIG_FILE = 'adapter_config.json';
export const PEFT_WEIGHTS_FILE = 'adapter_model.safetensors';
export const GGUF_FILE = 'adapter.gguf';
const SUMMARY_FILE = 'adapter.json';
/** How the adapter came to be (record.ts), where it was made here. What strangers send under this name is read past. */
export const RECORD_FILE = 'record.json';
const TEMPORARY = '.import-';

const summarySchema = z.object({
  version: z.literal(1),
  digest: z.string().regex(/^[0-9a-f]{64}$/),
  format: z.enum(['peft', 'gguf']),
  rankMax: z.number().int(),
  targets: z.array(z.enum(TARGETS)),
  layers: z.number().int(),
  /** Of all files that came. */
  bytes: z.number().int(),
  /** What the adapter says its base was. */
  baseHint: z.string(),
  architecture: z.string(),
});
export type AdapterSummary = z.output<typeof summarySchema>;

/** One file of an import, as it arrives. */
export interface IncomingFile {
  /** Its last path segment decides what it is. */
  name: string;
  /** If known, to see early that the disk is too small. */
  bytes?: number;
  content: AsyncIterable<Uint8Array>;
}

export interface StagedAdapter {
  readonly summary: AdapterSummary;
  /** Makes it visible under its digest. The same weights are kept once: what is there already stays. */
  publish(): Promise<AdapterSummary>;
  /** Removes what was staged; nothing if it was published. */
  discard(): Promise<void>;
}

export interface StoreOptions {
  /** Adapter directory; made if missing. */
  root: string;
  base: BaseShape;
  /** Free bytes on the disk of `path`; tests put a full disk in its place. */
  freeBytes?: (path: string) => Promise<number>;
  /** Opens a new file for writing; tests put a failing disk in its place. */
  create?: (path: string) => Promise<Pick<FileHandle, 'write' | 'sync' | 'close'>>;
}

export class AdapterStore {
  readonly root: string;
  private readonly base: BaseShape;
  private readonly freeBytes: (path: string) => Promise<number>;
  private readonly create: (path: string) => Promise<Pick<FileHandle, 'write' | 'sync' | 'close'>>;

  private constructor(options: StoreOptions) {
    this.root = options.root;
    this.base = options.base;
    this.freeBytes = options.freeBytes ?? freeBytesOf;
    this.create = options.create ?? ((path) => open(path, 'wx', 0o600));
  }

  /** Also clears what an import that was cut off left behind. */
  static async open(options: StoreOptions): Promise<AdapterStore> {
    await mkdir(options.root, { recursive: true });
    for (const entry of await readdir(options.root)) {
      // `.tmp`: a names file that was not renamed yet (durable.ts).
      if (entry.startsWith(TEMPORARY) || entry.endsWith('.tmp'))
        await rm(join(options.root, entry), { recursive: true, force: true });
    }
    return new AdapterStore(options);
  }

  /** Digests of all adapters here. */
  async digests(): Promise<string[]> {
    return (await readdir(this.root)).filter((entry) => /^[0-9a-f]{64}$/.test(entry));
  }

  /**
   * Takes in the files of one adapter and checks them, beside the adapters that are there. Leaves nothing behind when it
   * fails. Who calls must `publish` or `discard`.
   * @throws AdapterError
   */
  async stage(
    files: AsyncIterable<IncomingFile> | Iterable<IncomingFile>,
    /** Text of the record to keep beside the weights. */
    record?: string,
  ): Promise<StagedAdapter> {
    const directory = join(this.root, `${TEMPORARY}${randomUUID()}`);
    const discard = (): Promise<void> => rm(directory, { recursive: true, force: true });
    try {
      await mkdir(directory);
      const bytes = await this.receiveAll(directory, files);
      const { parsed, digest, fileBytes } = await this.understand(directory);
      const summary: AdapterSummary = {
        version: 1,
        digest,
        format: parsed.format,
        rankMax: parsed.rankMax,
        targets: parsed.targets,
        layers: parsed.layers.length,
        bytes,
        baseHint: parsed.baseHint,
        architecture: this.base.architecture,
      };
      const content = Readable.from([Buffer.from(JSON.stringify(summary, null, 2))]);
      await this.receive(directory, { name: SUMMARY_FILE, content }, ADAPTER_LIMITS.configBytesMax);
      const pairs = Readable.from([Buffer.from(encodePairs(parsed.pairs, { digest, fileBytes, base: this.base }))]);
      await this.receive(directory, { name: PAIRS_FILE, content: pairs }, ADAPTER_LIMITS.pairsBytesMax);
      if (record !== undefined) {
        const content = Readable.from([Buffer.from(record)]);
        await this.receive(directory, { name: RECORD_FILE, content }, ADAPTER_LIMITS.recordBytesMax);
      }
      await syncDirectory(directory);
      return { summary, discard, publish: () => this.publish(directory, summary, record) };
    } catch (error) {
      await discard();
      throw fromFileError(error, 'while adding the adapter');
    }
  }

  /** @throws AdapterError `not_found`, `corrupt` */
  async summary(digest: string): Promise<AdapterSummary> {
    const path = join(this.directory(digest), SUMMARY_FILE);
    let text: string;
    try {
      text = await readFile(path, 'utf8');
    } catch {
      throw new AdapterError('not_found', `there is no adapter ${digest.slice(0, 12)}… on this machine`);
    }
    try {
      return summarySchema.parse(JSON.parse(text));
    } catch {
      throw new AdapterError('corrupt', `${path} is damaged; remove the adapter and add it again`);
    }
  }

  /**
   * What the engine needs to bring the weights in: from `pairs.json` where that is sound and the weights file has the size
   * that it had, else from the file's header, read and checked anew (the file was damaged, or the base is another one).
   * `known`: the adapter's summary, where the caller has it.
   * @throws AdapterError
   */
  async handle(digest: string, known?: AdapterSummary): Promise<AdapterHandle> {
    const directory = this.directory(digest);
    const { format } = known ?? (await this.summary(digest));
    const file = join(directory, weightsFile(format));
    const [text, fileBytes] = await Promise.all([
      readFile(join(directory, PAIRS_FILE), 'utf8').catch(() => ''),
      stat(file).then(
        ({ size }) => size,
        () => -1,
      ),
    ]);
    const pairs = decodePairs(text, { digest, fileBytes, base: this.base });
    return { digest, file, pairs: pairs ?? (await this.parse(directory, format)).pairs };
  }

  /** Gone at once under its name; no error if it was not there. */
  async remove(digest: string): Promise<void> {
    const trash = join(this.root, `${TEMPORARY}${randomUUID()}`);
    try {
      await rename(this.directory(digest), trash);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
      throw error;
    }
    await rm(trash, { recursive: true, force: true });
  }

  /** Where the files of an adapter lie. @throws AdapterError if it is no digest */
  directory(digest: string): string {
    if (!/^[0-9a-f]{64}$/.test(digest))
      throw new AdapterError('not_found', 'an adapter is known by 64 hexadecimal digits');
    return join(this.root, digest);
  }

  private async receiveAll(
    directory: string,
    files: AsyncIterable<IncomingFile> | Iterable<IncomingFile>,
  ): Promise<number> {
    const seen = new Set<string>();
    let total = 0;
    let count = 0;
    for await (const file of files) {
      if (++count > ADAPTER_LIMITS.uploadFilesMax) {
        throw new AdapterError('too_large', `more than ${ADAPTER_LIMITS.uploadFilesMax} files came for one adapter`);
      }
      const name = storedName(file.name);
      if (name === null) {
        // README.md, tokenizer files and the like travel along with adapters; they are read past.
        for await (const _ of file.content);
        continue;
      }
      if (seen.has(name))
        throw new AdapterError('source_invalid', `two files came as ${name}; send one adapter at a time`);
      seen.add(name);
      total += await this.receive(
        directory,
        { ...file, name },
        name === CONFIG_FILE ? ADAPTER_LIMITS.configBytesMax : ADAPTER_LIMITS.fileBytesMax,
      );
    }
    checkComplete(seen);
    return total;
  }

  private async receive(directory: string, file: IncomingFile, bytesMax: number): Promise<number> {
    const tooLarge = (): AdapterError =>
      new AdapterError('too_large', `${file.name} is larger than the ${bytesMax} bytes that are taken for an adapter`);
    if (file.bytes !== undefined && file.bytes > bytesMax) throw tooLarge();
    if ((await this.freeBytes(this.root)) < (file.bytes ?? 0) + ADAPTER_LIMITS.diskReserveBytes) {
      throw new AdapterError(
        'disk_full',
        `the disk has too little room for ${file.name}; free some space and try again`,
      );
    }
    const target = await this.create(join(directory, file.name));
    try {
      let bytes = 0;
      for await (const chunk of file.content) {
        bytes += chunk.byteLength;
        if (bytes > bytesMax) throw tooLarge();
        for (let written = 0; written < chunk.byteLength; ) {
          written += (await target.write(chunk, written, chunk.byteLength - written)).bytesWritten;
        }
      }
      await target.sync();
      return bytes;
    } finally {
      await target.close();
    }
  }

  private async understand(
    directory: string,
  ): Promise<{ parsed: ParsedAdapter & { baseHint: string }; digest: string; fileBytes: number }> {
    const format = await stat(join(directory, GGUF_FILE)).then(
      () => 'gguf' as const,
      () => 'peft' as const,
    );
    const parsed = await this.parse(directory, format);
    const file = await open(join(directory, weightsFile(format)), 'r');
    try {
      const { size } = await file.stat();
      return { parsed, digest: await digestWeights(file, size, parsed, this.base), fileBytes: size };
    } finally {
      await file.close();
    }
  }

  private async parse(directory: string, format: 'peft' | 'gguf'): Promise<ParsedAdapter & { baseHint: string }> {
    if (format === 'gguf') return readGgufLora(join(directory, GGUF_FILE), this.base);
    const config = await readFile(join(directory, CONFIG_FILE));
    return parsePeft(config, await readSafetensorsHeader(join(directory, PEFT_WEIGHTS_FILE)), this.base);
  }

  private async publish(directory: string, summary: AdapterSummary, record?: string): Promise<AdapterSummary> {
    const final = this.directory(summary.digest);
    // Same weights again: what is here stays, requests may be reading it. Only the newest word on how they came to be counts.
    const existing = await this.handle(summary.digest).catch(() => null);
    if (existing) {
      if (record !== undefined) await writeFileDurably(join(final, RECORD_FILE), record);
      return await this.summary(summary.digest);
    }
    await this.remove(summary.digest);
    await rename(directory, final);
    await syncDirectory(this.root);
    return summary;
  }
}

function weightsFile(format: AdapterSummary['format']): string {
  return format === 'peft' ? PEFT_WEIGHTS_FILE : GGUF_FILE;
}

/** @throws AdapterError */
export async function readSafetensorsHeader(path: string): Promise<ReturnType<typeof parseSafetensorsHeader>> {
  const file = await open(path, 'r');
  try {
    const { size } = await file.stat();
    const first = Buffer.alloc(8);
    const { bytesRead } = await file.read(first, 0, 8, 0);
    const headerBytes = safetensorsHeaderBytes(first.subarray(0, bytesRead), size);
    const head = Buffer.allocUnsafe(8 + headerBytes);
    let filled = 0;
    while (filled < head.byteLength) {
      const read = await file.read(head, filled, head.byteLength - filled, filled);
      if (read.bytesRead === 0) break;
      filled += read.bytesRead;
    }
    return parseSafetensorsHeader(head.subarray(0, filled), size);
  } finally {
    await file.close();
  }
}

async function freeBytesOf(path: string): Promise<number> {
  const { bavail, bsize } = await statfs(path);
  return bavail * bsize;
}

/** Under which name a file is kept; null: it is not needed. Never a path of the sender's choice. */
function storedName(sent: string): string | null {
  const name = sent.split(/[/\\]/).at(-1) ?? '';
  if (name === CONFIG_FILE || name === PEFT_WEIGHTS_FILE) return name;
  if (/\.gguf$/i.test(name)) return GGUF_FILE;
  if (/\.(bin|pt|pth|pkl|ckpt)$/i.test(name)) {
    throw new AdapterError(
      'unsupported',
      `${name.slice(0, 128)} is a pickle, which can run code when it is read; save the adapter as safetensors`,
    );
  }
  return null;
}

function checkComplete(names: ReadonlySet<string>): void {
  const peft = names.has(CONFIG_FILE) || names.has(PEFT_WEIGHTS_FILE);
  if (names.has(GGUF_FILE)) {
    if (!peft) return;
    throw new AdapterError('source_invalid', 'a GGUF and a PEFT adapter came together; add one at a time');
  }
  for (const name of [CONFIG_FILE, PEFT_WEIGHTS_FILE]) {
    if (!names.has(name)) {
      throw new AdapterError(
        'source_invalid',
        `${name} is missing; an adapter is ${CONFIG_FILE} with ${PEFT_WEIGHTS_FILE}, or one .gguf file`,
      );
    }
  }
}

/** One export: everything is opened and checked first, so that what can fail fails before the first byte. */
import { type FileHandle, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import type { QuantizedType } from '../../../addon/quantize.ts';
import { DaemonError } from '../../errors.ts';
import type { BaseShape } from '../../models/inspect.ts';
import { isModelType, MODEL_TYPES } from '../../models/tensor-choice.ts';
import type { EvaluationReport } from '../../training/protocol.ts';
import { EXPORT_LIMITS } from '../limits.ts';
import { readRecord } from '../record.ts';
import type { AdapterRegistry } from '../registry.ts';
import { CONFIG_FILE, PEFT_WEIGHTS_FILE } from '../store.ts';
import { cardText, describeAdapter } from './card.ts';
import { writeLoraGguf } from './lora-gguf.ts';
import { startMerge } from './merge-client.ts';
import { type MergeJob, openAdapter } from './merged.ts';
import { peftConfig, writeSafetensors } from './peft-folder.ts';
import { packTar, type TarEntry } from './tar.ts';
import { readRange } from './weights.ts';

export const exportQuery = z.object({
  format: z.enum(['peft', 'gguf', 'merged'], { error: 'use peft, gguf or merged' }),
  type: z.string().max(16).optional(),
});
export type ExportQuery = z.output<typeof exportQuery>;

export interface ExportContext {
  registry: Pick<AdapterRegistry, 'folder' | 'handle'>;
  /** The base as it was when the daemon started. */
  model: MergeJob['model'];
  base: BaseShape;
  /** How a merge computes beside the engine: threads, and its share of the time while that is busy. Absent: one thread, at once. */
  cores?: { threads: number; share: number };
  /** Evaluations of an adapter, newest first. */
  reportsOf?: (digest: string) => Promise<EvaluationReport[]>;
}

export interface Export {
  fileName: string;
  contentType: string;
  bytes: number;
  chunks: AsyncIterable<Uint8Array>;
  /** Lets go of files and threads; also after the last byte. */
  close(): Promise<void>;
}

const LORA_TYPES = ['f32', 'f16', 'bf16'] as const;
const HUB_ID = /^[\w.-]{1,96}\/[\w.-]{1,96}$/;

/** @throws DaemonError */
export async function openExport(name: string, query: ExportQuery, context: ExportContext): Promise<Export> {
  const type = checkType(query);
  const { registry, base, model } = context;
  const { summary, path } = registry.folder(name);
  const { digest, file: weightsPath, pairs } = await registry.handle(name);
  const { format } = summary;
  if (query.format === 'merged') {
    const adapter = { name, digest, file: weightsPath, format, pairs };
    const quantized = (type as QuantizedType | undefined) ?? null;
    const merge = await startMerge({ model, base, adapter, type: quantized, ...context.cores });
    const { fileBytes: bytes, chunks, close } = merge;
    return { fileName: `${safeName(name)}-merged.gguf`, contentType: GGUF, bytes, chunks, close };
  }
  const file = await openAdapter(weightsPath);
  const close = () => file.close();
  try {
    const facts = { file, format, pairs, base };
    const baseName = HUB_ID.test(summary.baseHint) ? summary.baseHint : model.id;
    if (query.format === 'gguf') {
      const dtype = type as (typeof LORA_TYPES)[number] | undefined;
      const { fileBytes: bytes, chunks } = writeLoraGguf({ ...facts, name, baseName, ...(dtype && { dtype }) });
      return { fileName: `${safeName(name)}-lora.gguf`, contentType: GGUF, bytes, chunks, close };
    }
    const record = await readRecord(path);
    const described = await describeAdapter(name, context);
    const folder = safeName(name);
    const entries = [
      ...(await peftFiles(facts, path, baseName)),
      textEntry('README.md', cardText(described, baseName)),
      ...(record?.recipe ? [jsonEntry('recipe.json', record.recipe)] : []),
      ...(record?.metrics ? [jsonEntry('metrics.json', { metrics: record.metrics, reports: described.reports })] : []),
    ].map((entry): TarEntry => ({ ...entry, name: `${folder}/${entry.name}` }));
    return { fileName: `${folder}.tar`, contentType: 'application/x-tar', ...packTar(entries), close };
  } catch (error) {
    await file.close();
    throw error;
  }
}

const GGUF = 'application/octet-stream';

function checkType({ format, type }: ExportQuery): string | undefined {
  if (type === undefined) return undefined;
  const allowed: readonly string[] = format === 'merged' ? MODEL_TYPES : format === 'gguf' ? LORA_TYPES : [];
  if (format === 'merged' ? isModelType(type) : allowed.includes(type)) return type;
  throw new DaemonError(
    'invalid_request_error',
    allowed.length === 0
      ? 'a PEFT folder holds the weights as they were trained; leave type away, or choose another format'
      : `there is no type ${JSON.stringify(type)} for the format ${format}; use ${allowed.join(', ')}, or leave it away`,
    'type',
  );
}

/** What came as a PEFT folder goes out to the byte, unless PEFT could not load it by these names. */
async function peftFiles(
  facts: Parameters<typeof writeSafetensors>[0],
  folder: string,
  baseName: string,
): Promise<TarEntry[]> {
  const config = facts.format === 'peft' ? await readFile(join(folder, CONFIG_FILE)) : null;
  const whole = facts.format === 'peft' && !(await namesInnerAdapter(facts.file));
  const { size } = await facts.file.stat();
  const weights = whole ? { bytes: size, chunks: readAll(facts.file, size) } : writeSafetensors(facts);
  return [
    config
      ? { name: CONFIG_FILE, bytes: config.byteLength, chunks: [config] }
      : jsonEntry(CONFIG_FILE, peftConfig(facts, baseName)),
    { name: PEFT_WEIGHTS_FILE, bytes: weights.bytes, chunks: weights.chunks },
  ];
}

/** `lora_A.default.weight`: as torch.save of a running model gives it, not as PEFT saves. */
async function namesInnerAdapter(file: FileHandle): Promise<boolean> {
  const headerBytes = Number((await readRange(file, 0, 8)).readBigUInt64LE(0));
  return /\.lora_[AB]\.[^."]+\.weight"/.test((await readRange(file, 8, headerBytes)).toString('utf8'));
}

async function* readAll(file: FileHandle, bytes: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes; at += EXPORT_LIMITS.readBytes) {
    yield await readRange(file, at, Math.min(EXPORT_LIMITS.readBytes, bytes - at));
  }
}

function textEntry(name: string, text: string): TarEntry {
  const bytes = Buffer.from(text);
  return { name, bytes: bytes.byteLength, chunks: [bytes] };
}

function jsonEntry(name: string, value: unknown): TarEntry {
  return textEntry(name, `${JSON.stringify(value, null, 2)}\n`);
}

/** A file name that means the same everywhere; adapter names may hold a colon, which Windows does not. */
export function safeName(name: string): string {
  const safe = name.replace(/[^A-Za-z0-9._@-]/g, '_');
  return safe.startsWith('.') ? `_${safe}` : safe;
}

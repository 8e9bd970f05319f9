/** Addresses of files on a Hugging Face hub (or a mirror of it: HF_ENDPOINT). */
import { FetchError } from './fetch-errors.ts';

export interface HubFile {
  repository: string;
  revision: string;
  file: string;
}

const NAME = /^[\w][\w.-]{0,95}$/;

/** `hf:owner/repo/path/file.gguf` or `…@revision`. Throws FetchError `name_unknown`. */
export function parseHubFile(text: string): HubFile {
  const [path = '', revision = 'main', ...rest] = text.replace(/^hf:/, '').split('@');
  const [owner = '', repo = '', ...file] = path.split('/');
  const segments = [...file, ...revision.split('/')];
  const isGood =
    rest.length === 0 &&
    file.length > 0 &&
    NAME.test(owner) &&
    NAME.test(repo) &&
    segments.every((part) => part !== '' && part !== '.' && part !== '..');
  if (!isGood)
    throw new FetchError(
      'name_unknown',
      `"${text}" is not of the form hf:owner/repo/file.gguf (with @revision if wanted).`,
    );
  return { repository: `${owner}/${repo}`, revision, file: file.join('/') };
}

export function hubUrl(file: HubFile, endpoint = hubEndpoint()): string {
  const path = file.file.split('/').map(encodeURIComponent).join('/');
  return `${endpoint}/${file.repository}/resolve/${encodeURIComponent(file.revision)}/${path}`;
}

export function hubEndpoint(): string {
  return (process.env.HF_ENDPOINT || 'https://huggingface.co').replace(/\/+$/, '');
}

/** The operator's token, for private and gated repositories. */
export function hubToken(): string | undefined {
  return process.env.HF_TOKEN || process.env.HUGGING_FACE_HUB_TOKEN || undefined;
}

export function hubHeaders(): Record<string, string> {
  const token = hubToken();
  return token ? { authorization: `Bearer ${token}` } : {};
}

/**
 * The log's Ed25519 key: `log.key` (mode 0600, in the text form of Go's sumdb/note: PRIVATE+KEY+name+hash+base64(type ‖ seed))
 * and beside it `log.vkey`, for everybody. The key's name is the log's origin, for the life of the log.
 */
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, randomBytes } from 'node:crypto';
import {
  chmodSync,
  closeSync,
  fsyncSync,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { decodeBase64 } from './encoding.ts';
import { LogError } from './errors.ts';
import {
  ED25519,
  ED25519_KEY_BYTES,
  formatVkey,
  isKeyName,
  keyId,
  keyIdHex,
  type NoteSigner,
  type NoteVerifier,
  parseVkey,
} from './note.ts';

/** DER of a PKCS #8 Ed25519 private key (RFC 8410) up to the seed. */
const PKCS8_PREFIX = Buffer.from('302e020100300506032b657004220420', 'hex');

export interface LogKey extends NoteSigner {
  verifier: NoteVerifier;
  vkey: string;
}

export function keyPaths(dataDir: string): { key: string; vkey: string } {
  return { key: join(dataDir, 'keys', 'log.key'), vkey: join(dataDir, 'keys', 'log.vkey') };
}

/** `…/log.key` → `…/log.vkey`. */
export function vkeyPathFor(keyPath: string): string {
  return keyPath.endsWith('.key') ? `${keyPath.slice(0, -'.key'.length)}.vkey` : `${keyPath}.vkey`;
}

/** null when there is no such file. Throws LogError for a key that others may read, or that is damaged. */
export function loadKey(path: string): LogKey | null {
  let text: string;
  try {
    const { mode } = statSync(path);
    if (process.platform !== 'win32' && (mode & 0o077) !== 0)
      throw new LogError(
        'log_key_insecure',
        `The log's key ${path} can be read by others (mode ${(mode & 0o777).toString(8)}). Run: chmod 600 ${path} — and make a new log if somebody may have copied it.`,
      );
    text = readFileSync(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    if (error instanceof LogError) throw error;
    throw new LogError(
      'log_key_invalid',
      `The log's key ${path} can't be read (${(error as NodeJS.ErrnoException).code ?? 'unknown'}).`,
      { cause: error },
    );
  }
  const key = parseKey(text.trim());
  if (!key)
    throw new LogError(
      'log_key_invalid',
      `The log's key ${path} is damaged. Restore it from a backup: a log can't go on under another key.`,
    );
  publishVkey(path, key.vkey);
  return key;
}

/** Makes a key unless the file exists by then; never overwrites one. */
export function createKey(path: string, origin?: string): LogKey {
  const { privateKey } = generateKeyPairSync('ed25519');
  const name = origin ?? `modelfactory/${rawPublicKey(privateKey).subarray(0, 6).toString('hex')}`;
  if (!isKeyName(name))
    throw new LogError('log_key_invalid', `"${name}" can't name a log: no spaces, no +, not empty.`);
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const temporary = `${path}.${randomBytes(6).toString('hex')}.tmp`;
  try {
    writeDurably(temporary, `${formatKey(name, privateKey)}\n`, 0o600);
    // link() fails where rename() would overwrite: of two processes that start at once, one key wins.
    linkSync(temporary, path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  } finally {
    rmSync(temporary, { force: true });
  }
  syncFolder(dirname(path));
  const key = loadKey(path);
  if (!key) throw new LogError('log_key_missing', `The log's key ${path} disappeared while it was made.`);
  return key;
}

function publishVkey(keyPath: string, vkey: string): void {
  const path = vkeyPathFor(keyPath);
  try {
    if (readFileSync(path, 'utf8') === `${vkey}\n`) return;
  } catch {
    // Missing: written below.
  }
  const temporary = `${path}.${randomBytes(6).toString('hex')}.tmp`;
  try {
    writeDurably(temporary, `${vkey}\n`, 0o644);
    renameSync(temporary, path);
  } finally {
    rmSync(temporary, { force: true });
  }
}

function writeDurably(path: string, text: string, mode: number): void {
  const file = openSync(path, 'wx', mode);
  try {
    writeSync(file, text);
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
  if (process.platform !== 'win32') chmodSync(path, mode);
}

/** So that the name of a new file survives a power cut. Some systems can't open folders. */
function syncFolder(path: string): void {
  if (process.platform === 'win32') return;
  const folder = openSync(path, 'r');
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
}

function rawPublicKey(key: KeyObject): Buffer {
  return createPublicKey(key).export({ format: 'der', type: 'spki' }).subarray(-ED25519_KEY_BYTES);
}

function formatKey(name: string, privateKey: KeyObject): string {
  const seed = privateKey.export({ format: 'der', type: 'pkcs8' }).subarray(-ED25519_KEY_BYTES);
  const id = keyIdHex(keyId(name, rawPublicKey(privateKey)));
  return `PRIVATE+KEY+${name}+${id}+${Buffer.concat([Buffer.of(ED25519), seed]).toString('base64')}`;
}

/** null for anything that is not a private key whose hash fits. */
export function parseKey(text: string): LogKey | null {
  const match = /^PRIVATE\+KEY\+([^+]+)\+([0-9a-f]{8})\+(.+)$/.exec(text);
  const [, name, hash, base64] = match ?? [];
  const blob = decodeBase64(base64);
  if (name === undefined || !isKeyName(name) || blob?.length !== 1 + ED25519_KEY_BYTES || blob[0] !== ED25519)
    return null;
  const privateKey = createPrivateKey({
    key: Buffer.concat([PKCS8_PREFIX, blob.subarray(1)]),
    format: 'der',
    type: 'pkcs8',
  });
  const publicKey = rawPublicKey(privateKey);
  const id = keyId(name, publicKey);
  if (keyIdHex(id) !== hash) return null;
  const vkey = formatVkey(name, publicKey);
  return { name, keyId: id, privateKey, vkey, verifier: parseVkey(vkey) };
}

/**
 * C2SP signed-note (c2sp.org/signed-note@v1.0.0) with Ed25519: a text, an empty line, then signature lines.
 * The signed bytes are the text with its final newline, without the empty line.
 */
import { createHash, createPublicKey, type KeyObject, sign, verify } from 'node:crypto';
import { decodeBase64, isWellFormed } from './encoding.ts';
import { LOG_LIMITS } from './limits.ts';

export const ED25519 = 0x01;
export const ED25519_KEY_BYTES = 32;
const ED25519_SIGNATURE_BYTES = 64;
const KEY_ID_BYTES = 4;
/** DER of a SubjectPublicKeyInfo for Ed25519 (RFC 8410) up to the raw key. */
const SPKI_PREFIX = Buffer.from('302a300506032b6570032100', 'hex');

export class NoteError extends Error {
  override name = 'NoteError';
}

export interface NoteSignature {
  name: string;
  /** 4 bytes, big-endian. */
  keyId: number;
  signature: Buffer;
}
export interface Note {
  /** With its final newline. */
  text: string;
  signatures: NoteSignature[];
}
export interface NoteVerifier {
  name: string;
  keyId: number;
  publicKey: KeyObject;
}
export interface NoteSigner {
  name: string;
  keyId: number;
  privateKey: KeyObject;
}

export function isKeyName(name: string): boolean {
  return name !== '' && name.length <= 255 && isWellFormed(name) && !/[\p{White_Space}+\p{Cc}]/u.test(name);
}

/** First four bytes of SHA-256(name ‖ 0x0A ‖ type ‖ public key). */
export function keyId(name: string, publicKey: Uint8Array): number {
  return createHash('sha256').update(`${name}\n`).update(Buffer.of(ED25519)).update(publicKey).digest().readUInt32BE(0);
}

export function keyIdHex(id: number): string {
  return id.toString(16).padStart(8, '0');
}

/** `name+hash+base64(type ‖ key)`. */
export function formatVkey(name: string, publicKey: Uint8Array): string {
  const key = Buffer.concat([Buffer.of(ED25519), publicKey]);
  return `${name}+${keyIdHex(keyId(name, publicKey))}+${key.toString('base64')}`;
}

export function parseVkey(vkey: string): NoteVerifier {
  const text = vkey.trim();
  // Base64 has a + of its own: only the first two separate.
  const first = text.indexOf('+');
  const second = text.indexOf('+', first + 1);
  if (first < 1 || second < 0) throw new NoteError('A verifier key reads name+hash+key.');
  const name = text.slice(0, first);
  const hash = text.slice(first + 1, second);
  const key = decodeBase64(text.slice(second + 1));
  if (!isKeyName(name)) throw new NoteError('The name in the verifier key is not a key name (no spaces, no +).');
  if (!/^[0-9a-f]{8}$/.test(hash)) throw new NoteError('The hash in the verifier key is not eight hex digits.');
  if (key?.length !== 1 + ED25519_KEY_BYTES || key[0] !== ED25519)
    throw new NoteError('The verifier key is not an Ed25519 key (type 1, 32 bytes).');
  const raw = key.subarray(1);
  if (keyIdHex(keyId(name, raw)) !== hash)
    throw new NoteError('The hash in the verifier key does not belong to its name and key.');
  const publicKey = createPublicKey({ key: Buffer.concat([SPKI_PREFIX, raw]), format: 'der', type: 'spki' });
  return { name, keyId: keyId(name, raw), publicKey };
}

/** `text` must end in a newline and hold no other control characters. */
export function signNote(text: string, signers: readonly NoteSigner[]): string {
  checkText(text);
  const message = Buffer.from(text);
  const lines = signers.map(({ name, keyId: id, privateKey }) => {
    const blob = Buffer.alloc(KEY_ID_BYTES + ED25519_SIGNATURE_BYTES);
    blob.writeUInt32BE(id);
    sign(null, message, privateKey).copy(blob, KEY_ID_BYTES);
    return `— ${name} ${blob.toString('base64')}\n`;
  });
  return `${text}\n${lines.join('')}`;
}

function checkText(text: string): void {
  if (!text.endsWith('\n')) throw new NoteError('The text of a note ends in a newline.');
  if (!isWellFormed(text)) throw new NoteError('The note is not valid Unicode.');
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the format forbids exactly these
  if (/[\u0000-\u0009\u000b-\u001f]/.test(text)) throw new NoteError('The note holds a control character.');
}

/** Takes a note apart; checks no signature. Throws NoteError. */
export function parseNote(note: string | Uint8Array): Note {
  const whole = typeof note === 'string' ? note : decodeUtf8(note);
  if (whole.length > LOG_LIMITS.noteBytesMax)
    throw new NoteError(`The note is longer than ${LOG_LIMITS.noteBytesMax} bytes.`);
  checkText(whole);
  const split = whole.lastIndexOf('\n\n');
  if (split < 0) throw new NoteError('The note has no empty line before its signatures.');
  const lines = whole.slice(split + 2, -1).split('\n');
  if (lines.length > LOG_LIMITS.noteSignaturesMax)
    throw new NoteError(`The note has more than ${LOG_LIMITS.noteSignaturesMax} signatures.`);
  return { text: whole.slice(0, split + 1), signatures: lines.map(parseSignatureLine) };
}

function decodeUtf8(bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new NoteError('The note is not valid UTF-8.');
  }
}

function parseSignatureLine(line: string): NoteSignature {
  const [dash, name, base64, ...more] = line.split(' ');
  const blob = decodeBase64(base64);
  if (dash !== '—' || name === undefined || !isKeyName(name) || !blob || more.length > 0)
    throw new NoteError('A signature line does not read "— name base64".');
  if (blob.length <= KEY_ID_BYTES) throw new NoteError('A signature is too short to hold a key hash and a signature.');
  return { name, keyId: blob.readUInt32BE(0), signature: blob.subarray(KEY_ID_BYTES) };
}

/**
 * The text of a note that at least one of `verifiers` signed. Unknown signatures are ignored, a bad signature of a known key
 * refuses the whole note. Throws NoteError.
 */
export function openNote(
  note: string | Uint8Array,
  verifiers: readonly NoteVerifier[],
): { text: string; verifiedBy: NoteVerifier[] } {
  const { text, signatures } = parseNote(note);
  const message = Buffer.from(text);
  const verifiedBy = new Set<NoteVerifier>();
  for (const { name, keyId: id, signature } of signatures) {
    const verifier = verifiers.find((known) => known.name === name && known.keyId === id);
    if (!verifier || verifiedBy.has(verifier)) continue;
    if (signature.length !== ED25519_SIGNATURE_BYTES || !verify(null, message, verifier.publicKey, signature))
      throw new NoteError(`The signature of ${name} does not verify: the note was changed after signing.`);
    verifiedBy.add(verifier);
  }
  if (verifiedBy.size === 0) throw new NoteError('The note is not signed by a known key.');
  return { text, verifiedBy: [...verifiedBy] };
}

/**
 * Checks that a row is in a version of a Datanet: the row's own signature, the way from its leaf to the signed root, and that root, leaf and key
 * are all of the same Datanet. Never throws for what a file holds.
 */
import { createHash, verify } from 'node:crypto';
import { type Checkpoint, parseCheckpointBody } from './checkpoint.ts';
import { type DatanetRowRecord, datanetRowLeaf } from './datanet-row.ts';
import { decodeBase64, isWellFormed } from './encoding.ts';
import { canonicalJson } from './entry.ts';
import { LOG_LIMITS } from './limits.ts';
import { leafHash, verifyInclusion } from './merkle.ts';
import { type NoteVerifier, openNote, parseNote, parseVkey } from './note.ts';
import {
  chooseKey,
  decodeHashes,
  failed,
  passed,
  report,
  type VerifyCheck,
  type VerifyOptions,
  type VerifyReport,
} from './verify-checks.ts';

export const DATANET_ROW_PROOF = 'modelfactory.datanet-row-proof/1';

interface Leaf {
  record: DatanetRowRecord;
  signature: string;
}

export function verifyDatanetRow(fields: Record<string, unknown>, options: VerifyOptions): VerifyReport {
  const { entry } = fields;
  const key = chooseKey(fields.vkey, options, 'datanets');
  const { checks, leaf } = checkEntry(entry);
  checks.push(key.pinned ? checkOwnKey(key.check, key.verifier, fields.vkey) : key.check);
  checks.push(checkSignature(leaf, key.verifier));
  if (fields.content !== undefined) checks.push(checkContent(fields.content, leaf));
  const signed = checkCheckpoint(fields.checkpoint, leaf, key.verifier);
  checks.push(signed.check);
  checks.push(checkInclusion(fields, signed.checkpoint));
  return report('datanet-row', key.pinned, checks, leaf === null ? {} : { row: leaf.record });
}

function checkEntry(entry: unknown): { checks: VerifyCheck[]; leaf: Leaf | null } {
  if (typeof entry !== 'string') return { checks: [failed('entry', 'The entry is not text.')], leaf: null };
  const bytes = Buffer.byteLength(entry);
  if (bytes > LOG_LIMITS.entryBytesMax)
    return { checks: [failed('entry', `The entry has ${bytes} bytes, more than a leaf can have.`)], leaf: null };
  let value: unknown;
  try {
    value = JSON.parse(entry);
  } catch {
    return { checks: [failed('entry', 'The entry is not JSON.')], leaf: null };
  }
  const entryCheck =
    canonicalJson(value) === entry
      ? passed('entry', `The entry is canonical JSON (RFC 8785), ${bytes} bytes.`)
      : failed('entry', 'The entry is not canonical JSON (RFC 8785): the same row could be written in a second way.');
  const parsed = datanetRowLeaf.safeParse(value);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    const detail = `The entry is no row of a Datanet: at "${issue?.path.join('.') ?? ''}", ${issue?.message ?? 'unknown'}.`;
    return { checks: [entryCheck, failed('row', detail)], leaf: null };
  }
  const { datanet, contributor, licence, time, generated_by } = parsed.data.record;
  const writer = generated_by === null ? '' : `, written by the model ${shown(generated_by)}`;
  const about = `A row of ${shown(datanet)}, contributed by ${shown(contributor)} under ${shown(licence)} at ${time}${writer}.`;
  return { checks: [entryCheck, passed('row', about)], leaf: parsed.data };
}

/** What others chose, on one line of a terminal. */
function shown(text: string): string {
  const printable = text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, '\ufffd');
  return printable.length > 100 ? `${printable.slice(0, 100)}…` : printable;
}

/** A file that names another key than the one it is checked against was made by somebody else, or changed. */
function checkOwnKey(pinned: VerifyCheck, verifier: NoteVerifier | null, own: unknown): VerifyCheck {
  if (!pinned.ok || verifier === null || own === undefined) return pinned;
  try {
    const named = parseVkey(String(own));
    if (named.name === verifier.name && named.publicKey.equals(verifier.publicKey)) return pinned;
  } catch {
    // Told below.
  }
  return failed('key', `The file names another key than the one given (${verifier.name}).`);
}

/** The record was signed when the row came in, before it was in any version. */
function checkSignature(leaf: Leaf | null, verifier: NoteVerifier | null): VerifyCheck {
  if (leaf === null || verifier === null)
    return failed('signature', 'The signature of the row could not be checked for want of a row or a key.');
  const signature = decodeBase64(leaf.signature);
  const record = Buffer.from(canonicalJson(leaf.record) ?? '');
  return signature !== null && verify(null, record, verifier.publicKey, signature)
    ? passed('signature', `The row is signed by ${verifier.name}.`)
    : failed('signature', `The row is not signed by ${verifier.name}, or was changed after signing.`);
}

function checkContent(content: unknown, leaf: Leaf | null): VerifyCheck {
  // A lone surrogate becomes another character in UTF-8, so that two texts would have one hash.
  if (typeof content !== 'string' || !isWellFormed(content))
    return failed('content', 'The content of the row is not text.');
  if (leaf === null) return failed('content', 'There is no row that the content could belong to.');
  const hash = createHash('sha256').update(content).digest('hex');
  return hash === leaf.record.content
    ? passed('content', `The content (${content.length} characters) is what the row names by its SHA-256.`)
    : failed('content', 'The content is not what the row names: its SHA-256 differs.');
}

/** @returns the checkpoint also when its signature fails, so that the next check can still say something. */
function checkCheckpoint(
  note: unknown,
  leaf: Leaf | null,
  verifier: NoteVerifier | null,
): { check: VerifyCheck; checkpoint: Checkpoint | null } {
  if (typeof note !== 'string') return { check: failed('checkpoint', 'The checkpoint is missing.'), checkpoint: null };
  let checkpoint: Checkpoint;
  try {
    checkpoint = parseCheckpointBody(parseNote(note).text);
  } catch (error) {
    const detail = `The checkpoint is malformed: ${(error as Error).message}`;
    return { check: failed('checkpoint', detail), checkpoint: null };
  }
  const { origin, size, extensions } = checkpoint;
  const fail = (detail: string) => ({ check: failed('checkpoint', detail), checkpoint });
  if (verifier === null) return fail('The signature of the checkpoint could not be checked for want of a key.');
  try {
    openNote(note, [verifier]);
  } catch (error) {
    return fail(`The checkpoint is not to be trusted: ${(error as Error).message}`);
  }
  if (extensions.length > 0) return fail('The checkpoint has extension lines, which those of versions do not have.');
  const version = leaf === null ? null : versionOf(origin, verifier.name, leaf.record.datanet);
  if (version === null)
    return fail(`The checkpoint is of ${JSON.stringify(shown(origin))}, not of a version of the row's Datanet.`);
  const detail = `The checkpoint of version ${version} (${size} rows) is signed by ${verifier.name}.`;
  return { check: passed('checkpoint', detail), checkpoint };
}

/** The origin of a version's checkpoint is `<key name>/<Datanet>/<number>`; null: it is of something else. */
function versionOf(origin: string, keyName: string, datanet: string): string | null {
  const prefix = `${keyName}/${datanet}/`;
  const number = origin.startsWith(prefix) ? origin.slice(prefix.length) : '';
  return /^[1-9][0-9]{0,15}$/.test(number) ? number : null;
}

function checkInclusion(fields: Record<string, unknown>, checkpoint: Checkpoint | null): VerifyCheck {
  const { entry, leafIndex } = fields;
  const proof = decodeHashes(fields.inclusionProof);
  if (typeof entry !== 'string' || checkpoint === null || proof === null || !Number.isSafeInteger(leafIndex)) {
    const detail =
      'Entry, leaf index, proof or checkpoint are missing or malformed, so nothing shows that the row is in the version.';
    return failed('inclusion', detail);
  }
  const { size, rootHash: root } = checkpoint;
  const ok = verifyInclusion({ index: leafIndex as number, size, leafHash: leafHash(entry), proof, root });
  return ok
    ? passed('inclusion', `The row is leaf ${leafIndex} of the ${size} in the checkpoint.`)
    : failed(
        'inclusion',
        `The proof does not lead from this row as leaf ${leafIndex} to the root of the checkpoint (${size} rows).`,
      );
}

/**
 * Offline verification of what the log hands out: a receipt with its inclusion proof, or a consistency proof between two checkpoints; and
 * of the proof that a row is in a version of a Datanet.
 * Trusts nothing but a verifier key. Never throws for what a file holds: every finding is a line of the report.
 */
import { closeSync, openSync, readSync } from 'node:fs';
import { type Receipt, receipt as receiptSchema } from '../protocol.ts';
import { type Checkpoint, openCheckpoint, parseCheckpoint } from './checkpoint.ts';
import { canonicalJson } from './entry.ts';
import { LOG_LIMITS } from './limits.ts';
import { emptyRoot, leafHash, verifyConsistency, verifyInclusion } from './merkle.ts';
import type { NoteVerifier } from './note.ts';
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
import { DATANET_ROW_PROOF, verifyDatanetRow } from './verify-datanet-row.ts';

export type { VerifyCheck, VerifyOptions, VerifyReport } from './verify-checks.ts';

/** Checks a JSON file as GET /v1/receipts/{id} or GET /log/consistency returns it. */
export async function verifyFile(path: string, options: VerifyOptions = {}): Promise<VerifyReport> {
  let text: string;
  try {
    text = readLimited(path);
  } catch (error) {
    const reason = (error as NodeJS.ErrnoException).code === 'ENOENT' ? 'it does not exist' : (error as Error).message;
    return report('unknown', false, [{ name: 'file', ok: false, detail: `${path} can't be read: ${reason}.` }]);
  }
  return verifyText(text, options);
}

function readLimited(path: string): string {
  const file = openSync(path, 'r');
  try {
    const buffer = Buffer.alloc(LOG_LIMITS.verifyFileBytesMax + 1);
    let length = 0;
    for (let read = -1; read !== 0 && length < buffer.length; length += read)
      read = readSync(file, buffer, length, buffer.length - length, null);
    if (length === buffer.length)
      throw new Error(`it has more than ${LOG_LIMITS.verifyFileBytesMax} bytes, so it is no proof`);
    return buffer.toString('utf8', 0, length);
  } finally {
    closeSync(file);
  }
}

export function verifyText(text: string, options: VerifyOptions = {}): VerifyReport {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return report('unknown', false, [{ name: 'file', ok: false, detail: 'The file is not JSON.' }]);
  }
  if (typeof value === 'object' && value !== null) {
    const fields = value as Record<string, unknown>;
    if (fields.type === DATANET_ROW_PROOF) return verifyDatanetRow(fields, options);
    if ('entry' in fields) return verifyReceipt(fields, options);
    if ('consistencyProof' in fields) return verifyGrowth(fields, options);
  }
  const detail =
    'The file holds neither a receipt or a row of a Datanet (entry, leafIndex, inclusionProof, checkpoint) nor a consistency proof (oldCheckpoint, newCheckpoint, consistencyProof).';
  return report('unknown', false, [{ name: 'file', ok: false, detail }]);
}

function verifyReceipt(fields: Record<string, unknown>, options: VerifyOptions): VerifyReport {
  const { entry, leafIndex } = fields;
  const { check: keyCheck, verifier, pinned } = chooseKey(fields.vkey, options);
  const { checks: entryChecks, receipt } = checkEntry(entry);
  const signed = checkCheckpoint('checkpoint', fields.checkpoint, verifier);
  const proof = decodeHashes(fields.inclusionProof);
  const checks = [...entryChecks, keyCheck, signed.check];
  let inclusion: VerifyCheck;
  if (typeof entry !== 'string' || !signed.checkpoint || !proof || !Number.isSafeInteger(leafIndex)) {
    inclusion = failed(
      'inclusion',
      'Entry, leaf index, proof or checkpoint are missing or malformed, so nothing shows that the receipt is in the log.',
    );
  } else {
    const { size, rootHash: root } = signed.checkpoint;
    const ok = verifyInclusion({ index: leafIndex as number, size, leafHash: leafHash(entry), proof, root });
    inclusion = ok
      ? passed('inclusion', `The receipt is leaf ${leafIndex} of the ${size} in the checkpoint.`)
      : failed(
          'inclusion',
          `The proof does not lead from this receipt as leaf ${leafIndex} to the root of the checkpoint (${size} leaves).`,
        );
  }
  return report('receipt', pinned, [...checks, inclusion], receipt && { receipt });
}

function checkEntry(entry: unknown): { checks: VerifyCheck[]; receipt?: Receipt } {
  if (typeof entry !== 'string') return { checks: [failed('entry', 'The entry is not text.')] };
  const bytes = Buffer.byteLength(entry);
  if (bytes > LOG_LIMITS.entryBytesMax)
    return { checks: [failed('entry', `The entry has ${bytes} bytes, more than a log entry can have.`)] };
  let value: unknown;
  try {
    value = JSON.parse(entry);
  } catch {
    return { checks: [failed('entry', 'The entry is not JSON.')] };
  }
  const canonical = canonicalJson(value) === entry;
  const entryCheck = canonical
    ? passed('entry', `The entry is canonical JSON (RFC 8785), ${bytes} bytes.`)
    : failed('entry', 'The entry is not canonical JSON (RFC 8785): the same receipt could be written in a second way.');
  const parsed = receiptSchema.safeParse(value);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    return {
      checks: [
        entryCheck,
        failed(
          'receipt',
          `The entry is no receipt: at "${issue?.path.join('.') ?? ''}", ${issue?.message ?? 'unknown'}.`,
        ),
      ],
    };
  }
  const { id, outcome, promptTokens, completionTokens } = parsed.data;
  const about = `Receipt ${id}: ${outcome}, ${promptTokens} prompt and ${completionTokens} completion tokens.`;
  return { checks: [entryCheck, passed('receipt', about)], receipt: parsed.data };
}

function verifyGrowth(fields: Record<string, unknown>, options: VerifyOptions): VerifyReport {
  const { check: keyCheck, verifier, pinned } = chooseKey(fields.vkey, options);
  const older = checkCheckpoint('old checkpoint', fields.oldCheckpoint, verifier);
  const newer = checkCheckpoint('new checkpoint', fields.newCheckpoint, verifier);
  const proof = decodeHashes(fields.consistencyProof);
  const consistency = checkConsistency(older.checkpoint, newer.checkpoint, proof);
  return report('consistency', pinned, [keyCheck, older.check, newer.check, consistency]);
}

function checkConsistency(older: Checkpoint | null, newer: Checkpoint | null, proof: Buffer[] | null): VerifyCheck {
  if (!older || !newer || !proof)
    return failed(
      'consistency',
      'A checkpoint or the proof is missing or malformed, so nothing shows that the log only grew.',
    );
  if (older.origin !== newer.origin) return failed('consistency', 'The checkpoints are of two different logs.');
  if (older.size === 0n) {
    // Every tree extends the empty one; RFC 9162 has no proof for it.
    const ok =
      proof.length === 0 &&
      older.rootHash.equals(emptyRoot()) &&
      (newer.size > 0n || newer.rootHash.equals(emptyRoot()));
    return ok
      ? passed('consistency', 'The old log was empty: any log extends it.')
      : failed('consistency', 'The checkpoint of the empty log is not what it must be.');
  }
  const ok = verifyConsistency({
    oldSize: older.size,
    newSize: newer.size,
    oldRoot: older.rootHash,
    newRoot: newer.rootHash,
    proof,
  });
  return ok
    ? passed('consistency', `The log of ${newer.size} leaves contains the log of ${older.size} leaves unchanged.`)
    : failed(
        'consistency',
        `Nothing shows that the log of ${newer.size} leaves contains the log of ${older.size} leaves: entries may have been changed or removed.`,
      );
}

/** The checkpoint is returned also when its signature fails, so that the other checks can still say something. */
function checkCheckpoint(
  what: string,
  note: unknown,
  verifier: NoteVerifier | null,
): { check: VerifyCheck; checkpoint: Checkpoint | null } {
  if (typeof note !== 'string') return { check: failed('checkpoint', `The ${what} is missing.`), checkpoint: null };
  let checkpoint: Checkpoint;
  try {
    checkpoint = parseCheckpoint(note);
  } catch (error) {
    return { check: failed('checkpoint', `The ${what} is malformed: ${(error as Error).message}`), checkpoint: null };
  }
  if (!verifier)
    return {
      check: failed('checkpoint', `The signature of the ${what} could not be checked for want of a key.`),
      checkpoint,
    };
  try {
    openCheckpoint(note, verifier);
    return {
      check: passed('checkpoint', `The ${what} (${checkpoint.size} leaves) is signed by ${verifier.name}.`),
      checkpoint,
    };
  } catch (error) {
    return { check: failed('checkpoint', `The ${what} is not to be trusted: ${(error as Error).message}`), checkpoint };
  }
}

/** The report as lines for a terminal. */
export function formatReport({ ok, pinned, checks }: VerifyReport): string {
  const lines = checks.map((check) => `${check.ok ? 'ok    ' : 'FAILED'}  ${check.name.padEnd(11)}  ${check.detail}`);
  const verdict = ok ? (pinned ? 'VERIFIED' : 'CONSISTENT WITH ITSELF, but the signer is not pinned') : 'NOT VERIFIED';
  return [...lines, verdict].join('\n');
}

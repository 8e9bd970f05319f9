/** The checks that all files with proofs have in common: the key, base64 hashes, lines of a report. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Receipt } from '../protocol.ts';
import type { DatanetRowRecord } from './datanet-row.ts';
import { decodeBase64 } from './encoding.ts';
import { type NoteVerifier, parseVkey } from './note.ts';

export interface VerifyCheck {
  name:
    | 'file'
    | 'entry'
    | 'receipt'
    | 'row'
    | 'signature'
    | 'content'
    | 'key'
    | 'checkpoint'
    | 'inclusion'
    | 'consistency';
  ok: boolean;
  /** One sentence for a person. */
  detail: string;
}
export interface VerifyReport {
  /** True when every check passed. Look at `pinned` too: without a key of your own, only the file's agreement with itself was shown. */
  ok: boolean;
  kind: 'receipt' | 'consistency' | 'datanet-row' | 'unknown';
  /** The signature was checked against a key that did not come from the file. */
  pinned: boolean;
  checks: VerifyCheck[];
  /** The receipt, when it could be read. */
  receipt?: Receipt;
  /** What the leaf says of the row of a Datanet, when it could be read. */
  row?: DatanetRowRecord;
}
export interface VerifyOptions {
  /** Verifier key of the log: name+hash+key. */
  vkey?: string | undefined;
  /** A file that holds it (keys/log.vkey). A file that can't be read is a failed check. */
  vkeyPath?: string | undefined;
  /** Without either: the folder with the keys of this machine, log.vkey and datanets.vkey; those that are not there pin nothing. */
  keysFolder?: string | undefined;
}

export function report(
  kind: VerifyReport['kind'],
  pinned: boolean,
  checks: VerifyCheck[],
  found: Pick<VerifyReport, 'receipt' | 'row'> = {},
): VerifyReport {
  return { ok: checks.length > 0 && checks.every(({ ok }) => ok), kind, pinned, checks, ...found };
}

/** The caller's key if there is one (then a bad one is an error, never replaced by the file's own), else the file's. */
export function chooseKey(
  ownKey: unknown,
  { vkey, vkeyPath: given, keysFolder }: VerifyOptions,
  whose: 'log' | 'datanets' = 'log',
): { check: VerifyCheck; verifier: NoteVerifier | null; pinned: boolean } {
  const own = keysFolder === undefined ? undefined : join(keysFolder, `${whose}.vkey`);
  const vkeyPath = given ?? (vkey === undefined && own !== undefined && existsSync(own) ? own : undefined);
  const pinned = vkey !== undefined || vkeyPath !== undefined;
  try {
    if (vkey !== undefined) {
      const verifier = parseVkey(vkey);
      return { check: passed('key', `Checked against the key given: ${verifier.name}.`), verifier, pinned };
    }
    if (vkeyPath !== undefined) {
      const verifier = parseVkey(readFileSync(vkeyPath, 'utf8'));
      return { check: passed('key', `Checked against the key in ${vkeyPath}: ${verifier.name}.`), verifier, pinned };
    }
    if (typeof ownKey !== 'string')
      return { check: failed('key', 'There is no verifier key: give one (vkey).'), verifier: null, pinned };
    const verifier = parseVkey(ownKey);
    return {
      check: passed(
        'key',
        `Signature checked against the key inside the file (${verifier.name}): not pinned. Give the ${whose === 'log' ? "log's" : 'Datanet'} key to be sure who signed.`,
      ),
      verifier,
      pinned,
    };
  } catch (error) {
    return {
      check: failed('key', `The verifier key can't be used: ${(error as Error).message}`),
      verifier: null,
      pinned,
    };
  }
}

export function decodeHashes(value: unknown): Buffer[] | null {
  if (!Array.isArray(value)) return null;
  const hashes = value.map(decodeBase64);
  return hashes.every((hash) => hash !== null) ? (hashes as Buffer[]) : null;
}

export function passed(name: VerifyCheck['name'], detail: string): VerifyCheck {
  return { name, ok: true, detail };
}
export function failed(name: VerifyCheck['name'], detail: string): VerifyCheck {
  return { name, ok: false, detail };
}

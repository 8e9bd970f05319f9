/** Between the thread that stores rows and the one that prepares them. Bytes go in one piece: each array of its own costs a copy of its own. */
import { SIGNATURE_BYTES } from '../validation/minhash.ts';
import type { Canonical, Context, Prepared } from './prepare.ts';

type Row = Omit<Canonical, 'example'>;

export interface Question {
  id: number;
  context: Context;
  rows: Row[];
}

export interface Answer {
  id: number;
  failure: string | null;
  rows: Omit<Prepared, keyof Row | 'signature' | 'leafHash'>[];
  signatures: Uint8Array;
  leafHashes: Uint8Array;
}

const HASH_BYTES = 32;

export function packed(id: number, rows: readonly Prepared[]): Answer {
  const signatures = new Uint8Array(rows.length * SIGNATURE_BYTES);
  const leafHashes = new Uint8Array(rows.length * HASH_BYTES);
  rows.forEach((row, index) => {
    signatures.set(row.signature, index * SIGNATURE_BYTES);
    leafHashes.set(row.leafHash, index * HASH_BYTES);
  });
  return {
    id,
    failure: null,
    rows: rows.map(({ words, score, reasons, language, bands, entry }) => ({
      words,
      score,
      reasons,
      language,
      bands,
      entry,
    })),
    signatures,
    leafHashes,
  };
}

export function unpacked(question: Question, answer: Answer): Prepared[] {
  return answer.rows.map((row, index) => ({
    ...(question.rows[index] as Row),
    ...row,
    signature: answer.signatures.slice(index * SIGNATURE_BYTES, (index + 1) * SIGNATURE_BYTES),
    leafHash: answer.leafHashes.slice(index * HASH_BYTES, (index + 1) * HASH_BYTES),
  }));
}

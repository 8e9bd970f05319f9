/**
 * A row as a leaf of its version's Merkle tree: what the row is (by the hash of its content), whose, under which licence, since when, signed
 * by this server, so that a leaf can be shown to anybody without the content.
 */
import { createHash, sign } from 'node:crypto';
import { canonicalJson, DATANET_ROW, type DatanetRowRecord, type LogKey, leafHash } from '../../../daemon/evidence.ts';

export const LEAF_TYPE = DATANET_ROW;
export type LeafRecord = DatanetRowRecord;

export interface Leaf {
  /** Canonical JSON of `{record, signature}`: the bytes of the leaf. */
  entry: string;
  /** RFC 6962. */
  hash: Buffer;
}

export function contentHash(canonical: string): string {
  return createHash('sha256').update(canonical).digest('hex');
}

/** @param record of one row; its signature is Ed25519 over the canonical record. About 0.1 ms. */
export function leafOf(record: LeafRecord, key: Pick<LogKey, 'privateKey'>): Leaf {
  const text = canonicalJson(record);
  if (text === null) throw new Error('a row has no canonical form');
  const signature = sign(null, Buffer.from(text), key.privateKey).toString('base64');
  const entry = canonicalJson({ record, signature }) as string;
  return { entry, hash: leafHash(entry) };
}

/**
 * A row as a leaf of its version's Merkle tree: what the row is (by the hash of its content), whose, under which licence, since when, signed
 * by this server, so that a leaf can be shown to anybody without the content.
 */
import { createHash, sign } from 'node:crypto';
import { canonicalJson, type LogKey, leafHash } from '../../../daemon/evidence.ts';

export const LEAF_TYPE = 'modelfactory.datanet-row/1';

export interface LeafRecord {
  type: typeof LEAF_TYPE;
  datanet: string;
  /** SHA-256 of the row's canonical content, hex. */
  content: string;
  /** Id of the user who contributed it. */
  contributor: string;
  contribution: string;
  /** SPDX expression it was contributed under. */
  licence: string;
  /** ISO time. */
  time: string;
  /** Model that wrote it; null: a person's. */
  generated_by: string | null;
}

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

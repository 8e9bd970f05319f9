/**
 * RFC 6962 / RFC 9162 Merkle tree: hashing, compact range, proofs from stored nodes, verification. Pure functions.
 *
 * A node (level, index) is the root of the perfect subtree over leaves [index·2^level, (index + 1)·2^level). Sizes on the building side
 * are numbers (exact up to 2^53, no 32-bit operators); the verifiers take numbers or bigints up to 2^64 − 1.
 */
import { createHash } from 'node:crypto';

export const HASH_BYTES = 32;
const LEAF_PREFIX = Buffer.of(0);
const NODE_PREFIX = Buffer.of(1);

/** RFC 9162 §2.1.1: the hash of no leaves is that of the empty string. */
export function emptyRoot(): Buffer {
  return createHash('sha256').digest();
}
export function leafHash(data: Uint8Array | string): Buffer {
  return createHash('sha256').update(LEAF_PREFIX).update(data).digest();
}
export function nodeHash(left: Uint8Array, right: Uint8Array): Buffer {
  return createHash('sha256').update(NODE_PREFIX).update(left).update(right).digest();
}

export interface NodeId {
  level: number;
  index: number;
}
/** Half-open range of leaves. */
interface LeafRange {
  from: number;
  to: number;
}

/** The fewest perfect subtrees that cover [from, to), left to right, for ranges as RFC 6962 splits make them. */
export function coveringNodes({ from, to }: LeafRange): NodeId[] {
  const nodes: NodeId[] = [];
  let at = from;
  while (at < to) {
    let level = 0;
    while (at % 2 ** (level + 1) === 0 && at + 2 ** (level + 1) <= to) level++;
    nodes.push({ level, index: at / 2 ** level });
    at += 2 ** level;
  }
  return nodes;
}

/** Hash of a range from the hashes of its covering nodes: the right edge is folded first. */
export function foldNodes(hashes: readonly Uint8Array[]): Buffer {
  if (hashes.length === 0) return emptyRoot();
  return Buffer.from(hashes.reduceRight((right, left) => nodeHash(left, right)));
}

/** Largest power of two strictly below n (n ≥ 2). */
function splitPoint(n: number): number {
  let k = 1;
  while (k * 2 < n) k *= 2;
  return k;
}

/** RFC 6962 §2.1.1 PATH(m, D[n]) as the ranges whose hashes make the proof, leaf to root. Requires 0 ≤ index < size. */
function inclusionRanges(index: number, size: number): LeafRange[] {
  const ranges: LeafRange[] = [];
  let from = 0;
  let to = size;
  while (to - from > 1) {
    const middle = from + splitPoint(to - from);
    if (index < middle) {
      ranges.push({ from: middle, to });
      to = middle;
    } else {
      ranges.push({ from, to: middle });
      from = middle;
    }
  }
  return ranges.reverse();
}

/** RFC 6962 §2.1.2 PROOF(m, D[n]) as ranges. Requires 0 < oldSize ≤ size. */
function consistencyRanges(oldSize: number, size: number): LeafRange[] {
  const ranges: LeafRange[] = [];
  let from = 0;
  let to = size;
  // `whole`: the old tree is exactly [from, to) from the start, whose hash the verifier has already.
  let whole = true;
  while (oldSize !== to) {
    const middle = from + splitPoint(to - from);
    if (oldSize <= middle) {
      ranges.push({ from: middle, to });
      to = middle;
    } else {
      ranges.push({ from, to: middle });
      from = middle;
      whole = false;
    }
  }
  if (!whole) ranges.push({ from, to });
  return ranges.reverse();
}

/** Reads the stored hashes of nodes, in the order asked for. */
export type NodeReader = (nodes: NodeId[]) => Promise<Uint8Array[]>;

/** One read of at most 2·log2(n) nodes, then folding. */
async function hashRanges(ranges: LeafRange[], read: NodeReader): Promise<Buffer[]> {
  const plan = ranges.map(coveringNodes);
  const hashes = await read(plan.flat());
  let at = 0;
  return plan.map((nodes) => {
    const from = at;
    at += nodes.length;
    return foldNodes(hashes.slice(from, at));
  });
}

export async function inclusionProof(index: number, size: number, read: NodeReader): Promise<Buffer[]> {
  if (!(Number.isSafeInteger(index) && Number.isSafeInteger(size) && 0 <= index && index < size))
    throw new RangeError(`No inclusion proof of leaf ${index} in a tree of ${size}.`);
  return hashRanges(inclusionRanges(index, size), read);
}

/** From the empty tree the proof is empty: everything is consistent with it, and nothing is proved. */
export async function consistencyProof(oldSize: number, size: number, read: NodeReader): Promise<Buffer[]> {
  if (!(Number.isSafeInteger(oldSize) && Number.isSafeInteger(size) && 0 <= oldSize && oldSize <= size))
    throw new RangeError(`No consistency proof between trees of ${oldSize} and ${size}.`);
  return oldSize === 0 ? [] : hashRanges(consistencyRanges(oldSize, size), read);
}

/** Root of the tree of the first `size` leaves. */
export async function rootAt(size: number, read: NodeReader): Promise<Buffer> {
  return foldNodes(await read(coveringNodes({ from: 0, to: size })));
}

/**
 * The ≤ log2(n) roots of perfect subtrees that cover the tree so far: all that appending needs.
 * (transparency-dev/merkle docs/compact_ranges.md.)
 */
export class CompactRange {
  #size: number;
  #hashes: Buffer[];

  private constructor(size: number, hashes: Buffer[]) {
    this.#size = size;
    this.#hashes = hashes;
  }

  static empty(): CompactRange {
    return new CompactRange(0, []);
  }

  static async load(size: number, read: NodeReader): Promise<CompactRange> {
    const hashes = await read(coveringNodes({ from: 0, to: size }));
    return new CompactRange(
      size,
      hashes.map((hash) => Buffer.from(hash)),
    );
  }

  get size(): number {
    return this.#size;
  }

  clone(): CompactRange {
    return new CompactRange(this.#size, [...this.#hashes]);
  }

  /** Appends a leaf hash; returns the nodes it completes, leaf first, one per level. */
  append(leaf: Buffer): Buffer[] {
    const completed = [leaf];
    let node = leaf;
    for (let n = this.#size; n % 2 === 1; n = (n - 1) / 2) {
      const left = this.#hashes.pop();
      if (!left) throw new Error('compact range lost a node');
      node = nodeHash(left, node);
      completed.push(node);
    }
    this.#hashes.push(node);
    this.#size++;
    return completed;
  }

  root(): Buffer {
    return foldNodes(this.#hashes);
  }
}

const UINT64_MAX = (1n << 64n) - 1n;

function toUint64(value: number | bigint): bigint | null {
  if (typeof value === 'number') return Number.isSafeInteger(value) && value >= 0 ? BigInt(value) : null;
  return typeof value === 'bigint' && value >= 0n && value <= UINT64_MAX ? value : null;
}
function isHash(value: unknown): value is Uint8Array {
  return value instanceof Uint8Array && value.length === HASH_BYTES;
}
function areHashes(values: unknown): values is Uint8Array[] {
  return Array.isArray(values) && values.length <= 64 * 2 && values.every(isHash);
}
function bitLength(value: bigint): number {
  return value === 0n ? 0 : value.toString(2).length;
}
function popCount(value: bigint): number {
  return value.toString(2).replaceAll('0', '').length;
}
function bit(value: bigint, at: number): boolean {
  return ((value >> BigInt(at)) & 1n) === 1n;
}
function equal(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

export interface InclusionClaim {
  index: number | bigint;
  size: number | bigint;
  leafHash: Uint8Array;
  proof: readonly Uint8Array[];
  root: Uint8Array;
}

/** RFC 9162 §2.1.3.2. False, never an exception, for anything malformed. */
export function verifyInclusion(claim: InclusionClaim): boolean {
  const index = toUint64(claim.index);
  const size = toUint64(claim.size);
  const { proof } = claim;
  if (index === null || size === null || index >= size) return false;
  if (!isHash(claim.leafHash) || !isHash(claim.root) || !areHashes(proof)) return false;
  const inner = bitLength(index ^ (size - 1n));
  const border = popCount(index >> BigInt(inner));
  if (proof.length !== inner + border) return false;
  let hash: Uint8Array = claim.leafHash;
  for (const [k, sibling] of proof.entries()) {
    hash = k >= inner || bit(index, k) ? nodeHash(sibling, hash) : nodeHash(hash, sibling);
  }
  return equal(hash, claim.root);
}

export interface ConsistencyClaim {
  oldSize: number | bigint;
  newSize: number | bigint;
  oldRoot: Uint8Array;
  newRoot: Uint8Array;
  proof: readonly Uint8Array[];
}

/** RFC 9162 §2.1.4.2. An empty old tree proves nothing, so it is refused here. False for anything malformed. */
export function verifyConsistency(claim: ConsistencyClaim): boolean {
  const oldSize = toUint64(claim.oldSize);
  const newSize = toUint64(claim.newSize);
  const { oldRoot, newRoot, proof } = claim;
  if (oldSize === null || newSize === null || newSize < oldSize) return false;
  if (oldSize === 0n || !areHashes(proof)) return false;
  if (!(oldRoot instanceof Uint8Array && newRoot instanceof Uint8Array)) return false;
  if (oldSize === newSize) return proof.length === 0 && equal(oldRoot, newRoot);
  if (!isHash(oldRoot) || !isHash(newRoot)) return false;
  const shift = trailingZeros(oldSize);
  const inner = bitLength((oldSize - 1n) ^ (newSize - 1n)) - shift;
  const border = popCount((oldSize - 1n) >> BigInt(inner + shift));
  // When the old tree is one perfect subtree its root is the seed and the proof leaves it out.
  const perfect = oldSize === 1n << BigInt(shift);
  const seed = perfect ? oldRoot : proof[0];
  const rest = perfect ? proof : proof.slice(1);
  if (!seed || proof.length === 0 || rest.length !== inner + border) return false;
  const mask = (oldSize - 1n) >> BigInt(shift);
  let oldHash: Uint8Array = seed;
  let newHash: Uint8Array = seed;
  for (const [k, sibling] of rest.entries()) {
    if (k >= inner || bit(mask, k)) {
      oldHash = nodeHash(sibling, oldHash);
      newHash = nodeHash(sibling, newHash);
    } else {
      newHash = nodeHash(newHash, sibling);
    }
  }
  return equal(oldHash, oldRoot) && equal(newHash, newRoot);
}

function trailingZeros(value: bigint): number {
  let zeros = 0;
  while (!bit(value, zeros)) zeros++;
  return zeros;
}

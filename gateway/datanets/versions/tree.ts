/**
 * The Merkle tree of one version (RFC 6962), in memory: its leaves in the order of their rows, and every perfect subtree above them.
 * 72 bytes a row; 100,000 rows take about a quarter of a second to hash, so that the trees of versions are kept for the next proof.
 */
import { CompactRange, inclusionProof, type NodeId } from '../../../daemon/evidence.ts';

const HASH_BYTES = 32;

/** Hashes side by side in one growing buffer. */
class HashList {
  #bytes = Buffer.alloc(64 * HASH_BYTES);
  #count = 0;

  push(hash: Uint8Array): void {
    if ((this.#count + 1) * HASH_BYTES > this.#bytes.length) {
      const larger = Buffer.allocUnsafe(this.#bytes.length * 2);
      this.#bytes.copy(larger);
      this.#bytes = larger;
    }
    this.#bytes.set(hash, this.#count * HASH_BYTES);
    this.#count += 1;
  }

  at(index: number): Buffer {
    if (index >= this.#count) throw new Error('a version asked its tree for a node that it does not have');
    return this.#bytes.subarray(index * HASH_BYTES, (index + 1) * HASH_BYTES);
  }

  get capacity(): number {
    return this.#bytes.length;
  }
}

export class VersionTree {
  readonly #range = CompactRange.empty();
  readonly #levels: HashList[] = [];
  readonly #seqs: number[] = [];

  /** In ascending order of `seq`. */
  append(seq: number, leaf: Buffer): void {
    const last = this.#seqs.at(-1);
    if (last !== undefined && seq <= last) throw new Error('the rows of a version are out of order');
    this.#seqs.push(seq);
    for (const [level, hash] of this.#range.append(leaf).entries()) {
      let list = this.#levels[level];
      if (list === undefined) {
        list = new HashList();
        this.#levels.push(list);
      }
      list.push(hash);
    }
  }

  get size(): number {
    return this.#seqs.length;
  }

  get bytes(): number {
    return this.#levels.reduce((sum, list) => sum + list.capacity, 8 * this.#seqs.length);
  }

  root(): Buffer {
    return this.#range.root();
  }

  /** The place of a row; null: it is not in this version. */
  indexOf(seq: number): number | null {
    let low = 0;
    let high = this.#seqs.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#seqs[middle] as number) < seq) low = middle + 1;
      else high = middle;
    }
    return this.#seqs[low] === seq ? low : null;
  }

  /** Hashes from leaf to root. */
  proof(index: number): Promise<Buffer[]> {
    const read = async (nodes: NodeId[]) =>
      nodes.map(({ level, index: at }) => {
        const list = this.#levels[level];
        if (list === undefined) throw new Error('a version asked its tree for a level that it does not have');
        return list.at(at);
      });
    return inclusionProof(index, this.size, read);
  }
}

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  CompactRange,
  consistencyProof,
  emptyRoot,
  inclusionProof,
  leafHash,
  type NodeId,
  nodeHash,
  rootAt,
  verifyConsistency,
  verifyInclusion,
} from '../../../daemon/receipts/merkle.ts';

const vectors = fileURLToPath(new URL('../../../../shared/reference/merkle-testdata/', import.meta.url));
const reason = existsSync(vectors) ? '' : ' (skipped: the vectors of transparency-dev/merkle are not on this machine)';

/** RFC 6962 §2.1, word for word. */
function naiveRoot(leaves: Buffer[]): Buffer {
  if (leaves.length === 0) return emptyRoot();
  if (leaves.length === 1) return leaves[0]!;
  let k = 1;
  while (k * 2 < leaves.length) k *= 2;
  return nodeHash(naiveRoot(leaves.slice(0, k)), naiveRoot(leaves.slice(k)));
}

/** A tree in memory that counts the nodes read from it. */
class Tree {
  readonly leaves: Buffer[] = [];
  readonly range = CompactRange.empty();
  readonly stored = new Map<string, Buffer>();
  reads = 0;

  append(count: number): this {
    for (let i = 0; i < count; i++) {
      const index = this.leaves.length;
      const leaf = leafHash(`entry ${index}`);
      this.leaves.push(leaf);
      for (const [level, hash] of this.range.append(leaf).entries())
        this.stored.set(`${level}/${(index + 1) / 2 ** level - 1}`, hash);
    }
    return this;
  }
  readonly read = async (nodes: NodeId[]) => {
    this.reads += nodes.length;
    return nodes.map(({ level, index }) => {
      const hash = this.stored.get(`${level}/${index}`);
      if (!hash) throw new Error(`node ${level}/${index} was never completed`);
      return hash;
    });
  };
}

function parseBigInts(text: string): Record<string, unknown> {
  // Some sizes exceed 2^53, which JSON.parse would round.
  return JSON.parse(text.replace(/"(leafIdx|treeSize|size1|size2)": *(\d+)/g, '"$1": "$2"'));
}
function vectorFiles(kind: string): string[] {
  if (!existsSync(join(vectors, kind))) return [];
  return readdirSync(join(vectors, kind), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.json'))
    .map((file) => join(vectors, kind, file));
}
const hashesOf = (proof: unknown) => ((proof as string[] | null) ?? []).map((hash) => Buffer.from(hash, 'base64'));
const hashOf = (text: unknown) => Buffer.from(String(text ?? ''), 'base64');

describe(`the vectors of transparency-dev/merkle${reason}`, () => {
  it.skipIf(reason !== '')('all 98 inclusion proofs get the right verdict', () => {
    const files = vectorFiles('inclusion');
    expect(files).toHaveLength(98);
    for (const file of files) {
      const v = parseBigInts(readFileSync(file, 'utf8'));
      const claim = { index: BigInt(String(v.leafIdx)), size: BigInt(String(v.treeSize)), proof: hashesOf(v.proof) };
      const ok = verifyInclusion({ ...claim, leafHash: hashOf(v.leafHash), root: hashOf(v.root) });
      expect(ok, `${file}: ${v.desc}`).toBe(!v.wantErr);
    }
  });

  it.skipIf(reason !== '')('all 98 consistency proofs get the right verdict', () => {
    const files = vectorFiles('consistency');
    expect(files).toHaveLength(98);
    for (const file of files) {
      const v = parseBigInts(readFileSync(file, 'utf8'));
      const claim = { oldSize: BigInt(String(v.size1)), newSize: BigInt(String(v.size2)), proof: hashesOf(v.proof) };
      const ok = verifyConsistency({ ...claim, oldRoot: hashOf(v.root1), newRoot: hashOf(v.root2) });
      expect(ok, `${file}: ${v.desc}`).toBe(!v.wantErr);
    }
  });
});

describe('Merkle tree', () => {
  it('hashes the empty tree and a leaf as RFC 6962 says', () => {
    expect(emptyRoot().toString('hex')).toBe('e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855');
    expect(leafHash('').toString('hex')).toBe('6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d');
  });

  it('every proof of every tree up to 40 leaves verifies, and not for another index or size', async () => {
    const tree = new Tree();
    const roots = [emptyRoot()];
    for (let size = 1; size <= 40; size++) {
      tree.append(1);
      const root = tree.range.root();
      roots.push(root);
      expect(root).toEqual(naiveRoot(tree.leaves));
      for (let index = 0; index < size; index++) {
        const proof = await inclusionProof(index, size, tree.read);
        const claim = { index, size, leafHash: tree.leaves[index]!, proof, root };
        expect(verifyInclusion(claim)).toBe(true);
        expect(verifyInclusion({ ...claim, index: index + 1 })).toBe(false);
        expect(verifyInclusion({ ...claim, index: size })).toBe(false);
      }
      for (let oldSize = 1; oldSize <= size; oldSize++) {
        const proof = await consistencyProof(oldSize, size, tree.read);
        const claim = { oldSize, newSize: size, oldRoot: roots[oldSize]!, newRoot: root, proof };
        expect(verifyConsistency(claim)).toBe(true);
        expect(verifyConsistency({ ...claim, oldRoot: roots[oldSize - 1]! })).toBe(false);
      }
    }
  });

  it('proofs of any prefix of a large tree verify and read at most 2·log2(n) + 1 stored nodes', async () => {
    const tree = new Tree().append(5_000);
    await fc.assert(
      fc.asyncProperty(fc.nat(4_999), fc.nat(4_999), fc.nat(4_999), async (a, b, c) => {
        const size = Math.max(a, b) + 1;
        const oldSize = Math.min(a, b) + 1;
        const index = c % size;
        const root = await rootAt(size, tree.read);
        const bound = 2 * Math.ceil(Math.log2(size + 1)) + 1;
        tree.reads = 0;
        const inclusion = await inclusionProof(index, size, tree.read);
        expect(tree.reads).toBeLessThanOrEqual(bound);
        tree.reads = 0;
        const consistency = await consistencyProof(oldSize, size, tree.read);
        expect(tree.reads).toBeLessThanOrEqual(bound);
        const leaf = tree.leaves[index]!;
        expect(verifyInclusion({ index, size, leafHash: leaf, proof: inclusion, root })).toBe(true);
        const oldRoot = await rootAt(oldSize, tree.read);
        expect(verifyConsistency({ oldSize, newSize: size, oldRoot, newRoot: root, proof: consistency })).toBe(true);
        // Any flipped bit of any hash is noticed.
        if (inclusion.length > 0) {
          const broken = inclusion.map((hash) => Buffer.from(hash));
          const target = broken[c % broken.length]!;
          target[a % 32]! ^= 1 << (b % 8);
          expect(verifyInclusion({ index, size, leafHash: leaf, proof: broken, root })).toBe(false);
        }
      }),
      { numRuns: 200 },
    );
  });

  it('appending in any batches gives the root of the naive recursion, also after loading the range afresh', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.integer({ min: 1, max: 60 }), { minLength: 1, maxLength: 6 }), async (batches) => {
        const tree = new Tree();
        for (const count of batches) {
          tree.append(count);
          expect(tree.range.root()).toEqual(naiveRoot(tree.leaves));
          const loaded = await CompactRange.load(tree.leaves.length, tree.read);
          loaded.append(leafHash('next'));
          expect(loaded.root()).toEqual(naiveRoot([...tree.leaves, leafHash('next')]));
        }
      }),
      { numRuns: 40 },
    );
  });

  it('the empty tree proves nothing', () => {
    const root = emptyRoot();
    expect(verifyConsistency({ oldSize: 0, newSize: 0, oldRoot: root, newRoot: root, proof: [] })).toBe(false);
    expect(verifyInclusion({ index: 0, size: 0, leafHash: root, proof: [], root })).toBe(false);
  });

  it('verifiers answer false to garbage of any type and never throw', () => {
    const anything = fc.oneof(
      fc.anything(),
      fc.bigInt(),
      fc.uint8Array(),
      fc.array(fc.uint8Array({ minLength: 32, maxLength: 32 })),
    );
    fc.assert(
      fc.property(anything, anything, anything, anything, anything, (a, b, c, d, e) => {
        const asClaim = (value: object) => value as never;
        expect(verifyInclusion(asClaim({ index: a, size: b, leafHash: c, proof: d, root: e }))).toBe(false);
        expect(verifyConsistency(asClaim({ oldSize: a, newSize: b, oldRoot: c, newRoot: e, proof: d }))).toBe(false);
      }),
      { numRuns: 500 },
    );
  });
});

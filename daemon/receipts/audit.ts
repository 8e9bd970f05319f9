import { setImmediate as nextTurn } from 'node:timers/promises';
import { tampered } from './errors.ts';
import { CompactRange, leafHash } from './merkle.ts';
import type { CheckpointRow, ReceiptStore } from './store.ts';

export interface AuditRange {
  /** First leaf. */
  from: number;
  leavesMax: number;
  /** Leaves that are read at a time. */
  pageLeaves: number;
}

/**
 * Computes every hash of the range again from the entries; where it reaches the end of the tree, its root is held against the
 * signed checkpoint. Rejects with log_tampered.
 */
export async function audit(
  store: ReceiptStore,
  { treeSize, rootHash }: CheckpointRow,
  { from, leavesMax, pageLeaves }: AuditRange,
): Promise<{ leaves: number }> {
  const end = Math.min(treeSize, from + leavesMax);
  const range = await CompactRange.load(from, (nodes) => store.nodes(nodes));
  while (range.size < end) {
    const rows = await store.leaves(range.size, Math.min(pageLeaves, end - range.size));
    if (rows.length === 0) throw tampered(`receipts from leaf ${range.size} on are missing`);
    for (const { leafIndex, id, entry, hashes } of rows) {
      if (leafIndex !== range.size) throw tampered(`leaf ${range.size} is missing`);
      if (!Buffer.concat(range.append(leafHash(entry))).equals(hashes))
        throw tampered(`receipt ${id} (leaf ${leafIndex}) does not match its stored hashes`);
    }
    // Other messages get their turn between pages.
    await nextTurn();
  }
  if (end === treeSize && !range.root().equals(rootHash))
    throw tampered('the stored tree has another root than the signed checkpoint');
  return { leaves: end - from };
}

/**
 * Tables of daemon.db. Triggers (append-only guards) live in the SQL migrations, since drizzle-kit does not know them.
 */
import { sql } from 'drizzle-orm';
import { blob, check, integer, sqliteTable, text } from 'drizzle-orm/sqlite-core';

/**
 * The log's leaves, in order. `hashes` holds, 32 bytes each, the tree nodes that this leaf completes: its own leaf hash, then
 * one node a level up for every trailing 1 bit of `leaf_index` (Go's dense store, one row per leaf). The node (level, n) thus
 * stands in the row (n + 1)·2^level − 1 at byte 32·level, so leaf and nodes can't be written apart.
 */
export const receipts = sqliteTable(
  'receipts',
  {
    leafIndex: integer('leaf_index').primaryKey(),
    id: text('id').notNull().unique(),
    /** Canonical JSON (RFC 8785) of the receipt: exactly the bytes that are hashed. */
    entry: text('entry').notNull(),
    hashes: blob('hashes', { mode: 'buffer' }).notNull(),
  },
  (table) => [
    check('receipts_entry_bytes', sql`length(CAST(${table.entry} AS BLOB)) BETWEEN 1 AND 65535`),
    check('receipts_hashes_bytes', sql`length(${table.hashes}) > 0 AND length(${table.hashes}) % 32 = 0`),
  ],
);

/** One row: the newest signed checkpoint, written in the same transaction as the leaves it covers. It can only grow. */
export const checkpoint = sqliteTable(
  'checkpoint',
  {
    slot: integer('slot').primaryKey(),
    treeSize: integer('tree_size').notNull(),
    rootHash: blob('root_hash', { mode: 'buffer' }).notNull(),
    /** C2SP signed note. */
    note: text('note').notNull(),
  },
  (table) => [
    check('checkpoint_one_row', sql`${table.slot} = 1`),
    check('checkpoint_root_bytes', sql`length(${table.rootHash}) = 32`),
  ],
);

/** Scratch rows, written and removed again to find out whether a full disk has room once more. */
export const spaceProbe = sqliteTable('space_probe', {
  slot: integer('slot').primaryKey(),
  filler: blob('filler', { mode: 'buffer' }).notNull(),
});

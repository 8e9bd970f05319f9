import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { createClient } from '@libsql/client';
import fc from 'fast-check';
import { describe, expect, it, vi } from 'vitest';
import { openCheckpoint, parseCheckpoint } from '../../../daemon/receipts/checkpoint.ts';
import { createKey, keyPaths, loadKey, parseKey } from '../../../daemon/receipts/key.ts';
import { ReceiptLog } from '../../../daemon/receipts/log.ts';
import { CompactRange, leafHash, verifyConsistency, verifyInclusion } from '../../../daemon/receipts/merkle.ts';
import { parseVkey } from '../../../daemon/receipts/note.ts';
import { decodeEntryBundle, tilePath, tilesOf } from '../../../daemon/receipts/tiles.ts';
import { appendAll, makeReceipt, openLog, receiptsFrom, temporaryFolder } from './support.ts';

const hashes = (proof: string[]) => proof.map((hash) => Buffer.from(hash, 'base64'));

/** What every receipt of a log must have: its place, a proof, a signature. */
async function expectProved(log: ReceiptLog, id: string, leafIndex: number) {
  const bundle = await log.get(id);
  expect(bundle?.leafIndex).toBe(leafIndex);
  const { size, rootHash } = openCheckpoint(bundle!.checkpoint, parseVkey(log.vkey));
  const proof = hashes(bundle!.inclusionProof);
  expect(verifyInclusion({ index: leafIndex, size, leafHash: leafHash(bundle!.entry), proof, root: rootHash })).toBe(
    true,
  );
  return bundle!;
}

describe('appending', () => {
  it('a receipt is proved by the log the moment its append resolves, and is still there after reopening', async () => {
    const dataDir = temporaryFolder();
    const log = await openLog({ dataDir });
    expect(parseCheckpoint(await log.checkpoint()).size).toBe(0n);
    for (let i = 0; i < 20; i++) {
      expect(await log.append(makeReceipt(i))).toEqual({ leafIndex: i });
      await expectProved(log, `rcpt_${i}`, i);
    }
    const before = await log.get('rcpt_7');
    await log.close();
    const again = await openLog({ dataDir });
    expect(again.size).toBe(20);
    expect(await again.get('rcpt_7')).toEqual(before);
    expect(await again.getByIndex(7)).toEqual(before);
    expect(await again.get('rcpt_none')).toBeNull();
    expect(await again.getByIndex(20)).toBeNull();
    expect(await again.getByIndex(-1)).toBeNull();
  });

  it('random batches give the root of the leaves in order, and every old tree is a prefix', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 5 }), async (batches) => {
        const log = await ReceiptLog.open({ dataDir: temporaryFolder() });
        const range = CompactRange.empty();
        const seen: { size: number; root: Buffer }[] = [];
        for (const count of batches) {
          const receipts = receiptsFrom(range.size, count);
          await appendAll(log, receipts);
          for (const { id } of receipts) range.append(leafHash((await log.get(id))!.entry));
          const { size, rootHash } = openCheckpoint(await log.checkpoint(), parseVkey(log.vkey));
          expect(size).toBe(BigInt(range.size));
          expect(rootHash).toEqual(range.root());
          seen.push({ size: range.size, root: rootHash });
        }
        const last = seen.at(-1)!;
        for (const old of seen) {
          const { consistencyProof, oldCheckpoint, newCheckpoint } = await log.consistency(old.size);
          expect(openCheckpoint(oldCheckpoint, parseVkey(log.vkey)).rootHash).toEqual(old.root);
          expect(newCheckpoint).toBe(await log.checkpoint());
          const sizes = { oldSize: old.size, newSize: last.size, oldRoot: old.root, newRoot: last.root };
          expect(verifyConsistency({ ...sizes, proof: hashes(consistencyProof) })).toBe(true);
        }
        await log.close();
      }),
      { numRuns: 12 },
    );
  });

  it('what waits together is committed together: one transaction for 100 receipts, a few for 1,000', async () => {
    const log = await openLog({ dataDir: temporaryFolder() });
    const commit = vi.spyOn(log.store, 'commit');
    await appendAll(log, receiptsFrom(0, 100));
    expect(commit).toHaveBeenCalledTimes(1);
    expect(commit.mock.calls[0]?.[0]).toHaveLength(100);
    await appendAll(log, receiptsFrom(100, 1_000));
    expect(commit).toHaveBeenCalledTimes(1 + Math.ceil(1_000 / 256));
    expect(log.health().commits).toBe(1 + Math.ceil(1_000 / 256));
  });

  it('is durable when it resolves: WAL with synchronous=FULL on the connection that writes', async () => {
    const log = await openLog({ dataDir: temporaryFolder() });
    await log.append(makeReceipt(1));
    const { client } = log.store.database;
    expect((await client.execute('PRAGMA synchronous')).rows[0]?.[0]).toBe(2);
    expect((await client.execute('PRAGMA journal_mode')).rows[0]?.[0]).toBe('wal');
  });

  it('the same receipt again resolves to its index; another with its id is refused; neighbours are not harmed', async () => {
    const log = await openLog({ dataDir: temporaryFolder() });
    const other = makeReceipt(1, { costMicros: 99 });
    const first = await Promise.allSettled(
      [makeReceipt(1), makeReceipt(2), makeReceipt(1), other].map((r) => log.append(r)),
    );
    expect(first).toMatchObject([
      { value: { leafIndex: 0 } },
      { value: { leafIndex: 1 } },
      { value: { leafIndex: 0 } },
      { reason: { code: 'id_conflict' } },
    ]);
    const second = await Promise.allSettled(
      [makeReceipt(3), makeReceipt(2), other, makeReceipt(4)].map((r) => log.append(r)),
    );
    expect(second).toMatchObject([
      { value: { leafIndex: 2 } },
      { value: { leafIndex: 1 } },
      { reason: { code: 'id_conflict' } },
      { value: { leafIndex: 3 } },
    ]);
    expect(log.size).toBe(4);
    expect(log.health().status).toBe('ok');
    expect(await log.audit()).toEqual({ leaves: 4 });
  });

  it('takes an entry of 65,535 bytes and refuses one byte more', async () => {
    const log = await openLog({ dataDir: temporaryFolder() });
    await log.append(makeReceipt(0, { splitRule: '' }));
    const bare = Buffer.byteLength((await log.getByIndex(0))!.entry);
    const room = 65_535 - bare;
    await expect(log.append(makeReceipt(1, { splitRule: 'x'.repeat(room + 1) }))).rejects.toMatchObject({
      code: 'entry_too_large',
    });
    await log.append(makeReceipt(1, { splitRule: 'x'.repeat(room) }));
    expect((await log.getByIndex(1))?.entry).toHaveLength(65_535 - 1); // one character of the entry, ë, has two bytes
    expect(decodeEntryBundle((await log.tile('tile/entries/000.p/2'))!)?.[1]).toHaveLength(65_535);
  });

  it('refuses what is no receipt with a sentence that names the field', async () => {
    const log = await openLog({ dataDir: temporaryFolder() });
    const bad = [
      { ...makeReceipt(1), costMicros: -1 },
      { ...makeReceipt(1), id: 'a b' },
      makeReceipt(1, { splitRule: '\ud800' }),
      null,
      7,
    ];
    for (const receipt of bad)
      await expect(log.append(receipt as never)).rejects.toMatchObject({ code: 'entry_invalid' });
    await expect(log.append({ ...makeReceipt(1), costMicros: -1 })).rejects.toThrow(/costMicros/);
    expect(log.size).toBe(0);
  });

  it('pushes back when too many receipts wait, and close() commits those that do', async () => {
    const dataDir = temporaryFolder();
    const log = await openLog({ dataDir, limits: { queueMax: 3 } });
    const results = Promise.allSettled(receiptsFrom(0, 5).map((receipt) => log.append(receipt)));
    // The queue is full before anything was committed: append() puts a receipt there at once.
    const closed = new Promise<void>((resolve) => setImmediate(() => log.close().then(resolve)));
    const settled = await results;
    expect(settled.map(({ status }) => status)).toEqual([
      'fulfilled',
      'fulfilled',
      'fulfilled',
      'rejected',
      'rejected',
    ]);
    expect(settled[3]).toMatchObject({ reason: { code: 'log_queue_full' } });
    await closed;
    await expect(log.append(makeReceipt(9))).rejects.toMatchObject({ code: 'log_closed' });
    expect((await openLog({ dataDir })).size).toBe(3);
  });

  it('two logs on one file never fork it: the second takes in what the first wrote', async () => {
    const dataDir = temporaryFolder();
    const a = await openLog({ dataDir });
    const b = await openLog({ dataDir });
    const appended = await Promise.all([
      ...receiptsFrom(0, 30).map((r) => a.append(r)),
      ...receiptsFrom(30, 30).map((r) => b.append(r)),
    ]);
    expect(appended.map(({ leafIndex }) => leafIndex).sort((x, y) => x - y)).toEqual(
      Array.from({ length: 60 }, (_, i) => i),
    );
    await a.append(makeReceipt(60));
    await b.append(makeReceipt(61));
    await expectProved(b, 'rcpt_60', 60);
    expect(await b.audit()).toEqual({ leaves: 62 });
    // Reading what the other wrote after our last commit.
    await expectProved(a, 'rcpt_61', 61);
  });
});

describe('tiles', () => {
  it('every tile of the tree is served and its hashes lead to the signed root; nothing beyond it is', async () => {
    const log = await openLog({ dataDir: temporaryFolder() });
    await appendAll(log, receiptsFrom(0, 700));
    const level0: Buffer[] = [];
    for (const tile of tilesOf(700)) {
      const bytes = await log.tile(tilePath(tile));
      if (tile.level === 'entries') {
        expect(decodeEntryBundle(bytes!)).toHaveLength(tile.width);
        continue;
      }
      expect(bytes).toHaveLength(tile.width * 32);
      for (let i = 0; i < tile.width; i++) {
        const hash = Buffer.from(bytes!.subarray(i * 32, i * 32 + 32));
        if (tile.level === 0) level0.push(hash);
        else {
          const subtree = CompactRange.empty();
          for (const leaf of level0.slice(i * 256, (i + 1) * 256)) subtree.append(leaf);
          expect(hash).toEqual(subtree.root());
        }
      }
    }
    const range = CompactRange.empty();
    for (const leaf of level0) range.append(leaf);
    expect(range.root()).toEqual(parseCheckpoint(await log.checkpoint()).rootHash);
    const entries = decodeEntryBundle((await log.tile('tile/entries/001'))!)!;
    expect(leafHash(entries[3]!)).toEqual(level0[259]);
    for (const beyond of [
      'tile/0/002',
      'tile/0/002.p/189',
      'tile/0/003.p/1',
      'tile/1/000',
      'tile/1/000.p/3',
      'tile/2/000.p/1',
      'tile/63/000.p/1',
      'tile/entries/002',
      'checkpoint',
    ])
      expect(await log.tile(beyond), beyond).toBeNull();
    // Partial tiles of earlier checkpoints stay.
    expect(await log.tile('tile/0/000.p/255')).toHaveLength(255 * 32);
  });
});

describe('the key', () => {
  it('is made once, readable by its owner alone, and published beside', async () => {
    const dataDir = temporaryFolder();
    const log = await openLog({ dataDir, origin: 'log.example/one' });
    const paths = keyPaths(dataDir);
    expect(statSync(paths.key).mode & 0o777).toBe(0o600);
    expect(readFileSync(paths.vkey, 'utf8')).toBe(`${log.vkey}\n`);
    expect(log.origin).toBe('log.example/one');
    expect(createKey(paths.key, 'log.example/two').vkey).toBe(log.vkey);
    expect(parseKey(readFileSync(paths.key, 'utf8').trim())?.vkey).toBe(log.vkey);
    expect(parseKey(readFileSync(paths.key, 'utf8').trim().replace('one', 'two'))).toBeNull();
  });

  it.skipIf(process.platform === 'win32')('is refused when others may read it', async () => {
    const dataDir = temporaryFolder();
    await (await ReceiptLog.open({ dataDir })).close();
    chmodSync(keyPaths(dataDir).key, 0o644);
    await expect(ReceiptLog.open({ dataDir })).rejects.toMatchObject({
      code: 'log_key_insecure',
      message: expect.stringContaining('chmod 600'),
    });
  });

  it('a log that was signed does not go on without its key, under another one, or under another name', async () => {
    const dataDir = temporaryFolder();
    await (await ReceiptLog.open({ dataDir, origin: 'a' })).close();
    const { key } = keyPaths(dataDir);
    await expect(ReceiptLog.open({ dataDir, origin: 'b' })).rejects.toMatchObject({ code: 'log_key_mismatch' });
    renameSync(key, `${key}.away`);
    await expect(ReceiptLog.open({ dataDir })).rejects.toMatchObject({ code: 'log_key_missing' });
    expect(existsSync(key)).toBe(false);
    createKey(key, 'a');
    await expect(ReceiptLog.open({ dataDir })).rejects.toMatchObject({ code: 'log_key_mismatch' });
    rmSync(key);
    renameSync(`${key}.away`, key);
    expect(loadKey(key)?.name).toBe('a');
    await openLog({ dataDir });
  });

  it('damaged or unreadable keys are told apart from missing ones', () => {
    const folder = temporaryFolder();
    expect(loadKey(join(folder, 'none.key'))).toBeNull();
    mkdirSync(join(folder, 'folder.key'), { mode: 0o700 });
    expect(() => loadKey(join(folder, 'folder.key'))).toThrow(/can't be read/);
    for (const text of ['', 'PRIVATE+KEY+a', 'PRIVATE+KEY+a+00000000+AAAA']) expect(parseKey(text)).toBeNull();
    expect(() => createKey(join(folder, 'x.key'), 'two words')).toThrow(/can't name a log/);
  });
});

describe('tampering by somebody who has the file', () => {
  // Triggers are no protection against them: they can drop the triggers. The signed checkpoint is.
  const attacks: [string, string[]][] = [
    [
      'an entry is rewritten',
      ['UPDATE receipts SET entry = replace(entry, \'"costMicros":23\', \'"costMicros":24\') WHERE leaf_index = 5'],
    ],
    ['the newest receipt is removed', ['DELETE FROM receipts WHERE leaf_index = 9']],
    ['a receipt in the middle is removed', ['DELETE FROM receipts WHERE leaf_index = 4']],
    ['all receipts are removed', ['DELETE FROM receipts']],
    ['a stored hash is changed', ['UPDATE receipts SET hashes = zeroblob(length(hashes)) WHERE leaf_index = 3']],
    [
      'two receipts change places',
      [
        'UPDATE receipts SET leaf_index = 100 WHERE leaf_index = 1',
        'UPDATE receipts SET leaf_index = 1 WHERE leaf_index = 2',
        'UPDATE receipts SET leaf_index = 2 WHERE leaf_index = 100',
      ],
    ],
    [
      'a receipt is added',
      ["INSERT INTO receipts SELECT 10, 'rcpt_x', entry, hashes FROM receipts WHERE leaf_index = 0"],
    ],
    ['the checkpoint is removed', ['DELETE FROM checkpoint']],
    [
      'checkpoint and log are cut together',
      ['DELETE FROM receipts WHERE leaf_index >= 8', 'UPDATE checkpoint SET tree_size = 8'],
    ],
    ['the root is replaced', ['UPDATE checkpoint SET root_hash = zeroblob(32)']],
  ];
  it.each(attacks)('%s: the log refuses to open', async (_, statements) => {
    const dataDir = temporaryFolder();
    const log = await ReceiptLog.open({ dataDir });
    await appendAll(log, receiptsFrom(0, 10));
    await log.close();
    const attacker = createClient({ url: `file:${join(dataDir, 'daemon.db')}` });
    const { rows } = await attacker.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'");
    expect(rows.length).toBeGreaterThan(0);
    for (const { name } of rows) await attacker.execute(`DROP TRIGGER ${name}`);
    for (const statement of statements) expect((await attacker.execute(statement)).rowsAffected).toBeGreaterThan(0);
    attacker.close();
    await expect(ReceiptLog.open({ dataDir })).rejects.toMatchObject({
      code: 'log_tampered',
      message: expect.stringContaining('restore a backup'),
    });
  });

  it('an old entry beyond what opening audits is found when it is read, and by a full audit', async () => {
    const dataDir = temporaryFolder();
    const log = await ReceiptLog.open({ dataDir });
    await appendAll(log, receiptsFrom(0, 50));
    await log.close();
    const attacker = createClient({ url: `file:${join(dataDir, 'daemon.db')}` });
    await attacker.execute('DROP TRIGGER receipts_no_update');
    await attacker.execute(
      'UPDATE receipts SET entry = replace(entry, \'"outcome":"complete"\', \'"outcome":"failed"\') WHERE leaf_index = 5',
    );
    attacker.close();
    const opened = await openLog({ dataDir, limits: { auditLeavesAtOpen: 10 } });
    expect(await opened.get('rcpt_4')).not.toBeNull();
    await expect(opened.get('rcpt_5')).rejects.toMatchObject({ code: 'log_tampered' });
    await expect(opened.audit()).rejects.toMatchObject({ code: 'log_tampered' });
    expect(await opened.audit(6)).toEqual({ leaves: 44 });
  });

  it('an older copy put in place under a running log is noticed before anything is signed over it', async () => {
    const dataDir = temporaryFolder();
    const log = await openLog({ dataDir });
    await appendAll(log, receiptsFrom(0, 10));
    const other = await openLog({ dataDir });
    await other.append(makeReceipt(10));
    const attacker = log.store.database.client;
    for (const trigger of ['receipts_no_delete', 'checkpoint_only_grows'])
      await attacker.execute(`DROP TRIGGER ${trigger}`);
    await attacker.execute('DELETE FROM receipts WHERE leaf_index >= 6');
    await expect(log.consistency(6)).rejects.toMatchObject({ code: 'log_tampered' });
    await expect(log.append(makeReceipt(11))).rejects.toMatchObject({ code: 'log_tampered' });
    expect(log.health()).toMatchObject({ status: 'failed' });
  });

  it.each([
    ['its newest pages', 6],
    ['everything', 0],
  ])('a database that lost %s is a good one of an earlier time; the log says how much is gone', async (_, kept) => {
    const dataDir = temporaryFolder();
    const files = ['daemon.db', 'daemon.db-wal', 'daemon.db-shm'].map((name) => join(dataDir, name));
    const log = await ReceiptLog.open({ dataDir });
    await appendAll(log, receiptsFrom(0, kept));
    for (const file of files) copyFileSync(file, `${file}.early`);
    await appendAll(log, receiptsFrom(kept, 10 - kept));
    await log.close();
    for (const file of files) {
      if (kept > 0) copyFileSync(`${file}.early`, file);
      else rmSync(file, { force: true });
    }
    await expect(ReceiptLog.open({ dataDir })).rejects.toMatchObject({
      code: 'log_tampered',
      message: expect.stringMatching(new RegExp(`10 receipts were signed.* only the first ${kept}`)),
    });
  });

  it('another log of the same size under the same key is not the one that was signed', async () => {
    const [dataDir, elsewhere] = [temporaryFolder(), temporaryFolder()];
    const { key } = keyPaths(dataDir);
    const log = await ReceiptLog.open({ dataDir });
    await appendAll(log, receiptsFrom(0, 5));
    await log.close();
    const foreign = join(elsewhere, 'log.key');
    copyFileSync(key, foreign);
    const other = await ReceiptLog.open({ dbPath: join(dataDir, 'other.db'), keyPath: foreign });
    await appendAll(other, receiptsFrom(5, 5));
    await other.close();
    await expect(ReceiptLog.open({ dbPath: join(dataDir, 'other.db'), keyPath: key })).rejects.toMatchObject({
      code: 'log_tampered',
    });
    expect((await openLog({ dataDir })).size).toBe(5);
  });

  it('a power cut that leaves half of the note outside, or an older one, does not keep the log from opening', async () => {
    const dataDir = temporaryFolder();
    const note = join(dataDir, 'keys', 'log.checkpoint');
    const log = await ReceiptLog.open({ dataDir });
    await appendAll(log, receiptsFrom(0, 3));
    const early = readFileSync(note);
    await appendAll(log, receiptsFrom(3, 3));
    await log.close();
    expect(readFileSync(note, 'utf8')).toContain('\n6\n');
    for (const left of [early, early.subarray(0, 40), Buffer.alloc(0)]) {
      writeFileSync(note, left);
      const again = await ReceiptLog.open({ dataDir });
      await again.close();
      expect(readFileSync(note, 'utf8')).toContain('\n6\n');
    }
  });

  it('an earlier checkpoint is signed again only if the tree of that size is still what the log grew from', async () => {
    const dataDir = temporaryFolder();
    const log = await openLog({ dataDir });
    await appendAll(log, receiptsFrom(0, 10));
    const attacker = log.store.database.client;
    await attacker.execute('DROP TRIGGER receipts_no_update');
    await attacker.execute('UPDATE receipts SET hashes = zeroblob(length(hashes)) WHERE leaf_index = 4');
    await expect(log.consistency(5)).rejects.toMatchObject({ code: 'log_tampered' });
    await expect(log.consistency(2, 5)).rejects.toMatchObject({ code: 'log_tampered' });
    expect((await log.consistency(4)).oldCheckpoint).toContain('\n4\n');
  });

  it('a file that is no database, or a truncated one, is refused with a sentence', async () => {
    const dataDir = temporaryFolder();
    const log = await ReceiptLog.open({ dataDir });
    await appendAll(log, receiptsFrom(0, 200));
    await log.close();
    const path = join(dataDir, 'daemon.db');
    copyFileSync(path, `${path}.good`);
    writeFileSync(path, 'not a database, but long enough to have a header'.repeat(100));
    await expect(ReceiptLog.open({ dataDir })).rejects.toMatchObject({ code: 'log_tampered' });
    copyFileSync(`${path}.good`, path);
    truncateSync(path, 3 * 4096);
    await expect(ReceiptLog.open({ dataDir })).rejects.toMatchObject({ code: 'log_tampered' });
    copyFileSync(`${path}.good`, path);
    expect((await openLog({ dataDir })).size).toBe(200);
  });
});

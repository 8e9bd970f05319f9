import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { CompactRange, leafHash, openCheckpoint, parseCheckpoint } from '../../../../daemon/evidence.ts';
import type { VersionStatistics } from '../../../../gateway/datanets/versions/statistics.ts';
import type { DatanetRow, VersionRow } from '../../../../gateway/db/datanet-schema.ts';
import { type Bench, completions, startBench } from './support.ts';

let bench: Bench;
beforeEach(async () => {
  bench = await startBench();
});
afterEach(() => bench.close());

async function seqsOf(datanet: DatanetRow, number: number): Promise<number[]> {
  return (await bench.versions.rows(datanet.id, number, 0, 10_000)).map(({ seq }) => seq);
}

/** By the definition: the tree of the leaves of these rows, computed from their entries. */
async function rootOf(rows: number[]): Promise<string> {
  const range = CompactRange.empty();
  for (const row of [...rows].sort((a, b) => a - b)) {
    const [{ entry } = { entry: '' }] = await bench.sql('SELECT entry FROM datanet_rows WHERE seq = ?', [row]);
    range.append(leafHash(entry as string));
  }
  return range.root().toString('hex');
}

describe('publishing', () => {
  test('takes the approved rows, signs the root over them in their order, and counts what it took', async () => {
    const datanet = await bench.datanet();
    const first = await bench.add(datanet, completions(5), { score: 80 });
    await bench.add(datanet, completions(2, 'waiting'), { state: 'pending' });
    await bench.add(datanet, completions(1, 'bad'), { state: 'rejected' });
    const own = await bench.add(datanet, completions(3, 'own'), {
      contributor: 'user_owner',
      generatedBy: 'ft:writer',
      language: 'de',
      score: 100,
    });
    const other = await bench.datanet();
    await bench.add(other, completions(4));
    const version = await bench.versions.publish(datanet, 'user_owner', 'The first.');
    const rows = [...first, ...own];
    expect(version).toMatchObject({
      number: 1,
      state: 'published',
      cause: 'publish',
      notes: 'The first.',
      licence: 'CC-BY-4.0',
      rows: 8,
      added: 8,
      removed: 0,
      createdBy: 'user_owner',
      root: await rootOf(rows),
    });
    expect(await seqsOf(datanet, 1)).toEqual(rows);
    expect(version.statistics as unknown as VersionStatistics).toEqual({
      rows: 8,
      characters: expect.any(Number),
      score_mean: 87.5,
      contributors: 2,
      contributions: 2,
      generated: 3,
      self_reviewed: 3,
      licences: { 'CC-BY-4.0': 8 },
      languages: { en: 5, de: 3 },
      models: { 'ft:writer': 3 },
      by_contributor: [
        { contributor: 'user_giver', rows: 5, generated: 0 },
        { contributor: 'user_owner', rows: 3, generated: 3 },
      ],
    });
    expect(await bench.read(datanet.id)).toMatchObject({ version: 1, rows: 8 });
    const checkpoint = parseCheckpoint(version.checkpoint);
    expect(checkpoint).toMatchObject({ origin: `${bench.key.name}/${datanet.id}/1`, size: 8n, extensions: [] });
    expect(checkpoint.rootHash.toString('hex')).toBe(version.root);
    // Signed by the Datanet key, and no checkpoint of that key's own log.
    expect(() => openCheckpoint(version.checkpoint, bench.key.verifier)).toThrow(/is of the log/);
  });

  test('a version stays what it is when others follow, also where rows are approved later than their neighbours', async () => {
    const datanet = await bench.datanet();
    const late = await bench.add(datanet, completions(2, 'late'), { state: 'pending' });
    const early = await bench.add(datanet, completions(3, 'early'));
    const one = await bench.versions.publish(datanet, 'user_owner', '');
    await bench.approve(late);
    const two = await bench.versions.publish(datanet, 'user_owner', '');
    expect(await seqsOf(datanet, 1)).toEqual(early);
    expect(await seqsOf(datanet, 2)).toEqual([...late, ...early]);
    expect(two).toMatchObject({ rows: 5, added: 2, root: await rootOf([...late, ...early]) });
    expect(await bench.versions.get(datanet.id, 1)).toEqual(one);
    expect((await bench.versions.list(datanet.id, null, 10)).map(({ number }) => number)).toEqual([2, 1]);
    expect((await bench.versions.list(datanet.id, 2, 10)).map(({ number }) => number)).toEqual([1]);
  });

  test('the database itself refuses to change what a published version is', async () => {
    const datanet = await bench.datanet();
    const [row] = await bench.add(datanet, completions(2));
    await bench.versions.publish(datanet, 'user_owner', '');
    const refused = /published version/;
    await expect(bench.sql('UPDATE datanet_rows SET added_in = 2 WHERE seq = ?', [row as number])).rejects.toThrow(
      refused,
    );
    await expect(bench.sql('UPDATE datanet_rows SET added_in = NULL')).rejects.toThrow(refused);
    await expect(bench.sql('UPDATE datanet_rows SET removed_in = 1')).rejects.toThrow(refused);
    await expect(bench.sql("UPDATE datanet_versions SET root = 'x'")).rejects.toThrow(refused);
    await expect(bench.sql('DELETE FROM datanet_versions')).rejects.toThrow(refused);
    await expect(bench.sql('DELETE FROM datanet_rows')).rejects.toThrow(refused);
  });

  test('with nothing new there is no version, and nothing is left of the attempt', async () => {
    const datanet = await bench.datanet();
    await expect(bench.versions.publish(datanet, 'user_owner', '')).rejects.toMatchObject({
      status: 409,
      code: 'nothing_to_publish',
    });
    await bench.add(datanet, completions(1));
    await bench.versions.publish(datanet, 'user_owner', '');
    await expect(bench.versions.publish(datanet, 'user_owner', '')).rejects.toMatchObject({
      code: 'nothing_to_publish',
    });
    expect(await bench.sql('SELECT number FROM datanet_versions')).toEqual([{ number: 1 }]);
  });

  test('other terms are a reason for a version of the same rows', async () => {
    const datanet = await bench.datanet();
    await bench.add(datanet, completions(2));
    const one = await bench.versions.publish(datanet, 'user_owner', '');
    await bench.sql("UPDATE datanets SET licence = 'MIT', terms = 'Be kind.' WHERE id = ?", [datanet.id]);
    const two = await bench.versions.publish(datanet, 'user_owner', '');
    expect(two).toMatchObject({ number: 2, licence: 'MIT', terms: 'Be kind.', added: 0, rows: 2, root: one.root });
    expect(two.checkpoint).not.toBe(one.checkpoint);
  });

  test('a revoked Datanet publishes nothing, and withdraws all the same', async () => {
    const datanet = await bench.datanet();
    const rows = await bench.add(datanet, completions(2));
    await bench.versions.publish(datanet, 'user_owner', '');
    await bench.add(datanet, completions(1, 'more'));
    await bench.sql("UPDATE datanets SET state = 'revoked' WHERE id = ?", [datanet.id]);
    await expect(bench.versions.publish(datanet, 'user_owner', '')).rejects.toMatchObject({ code: 'datanet_revoked' });
    expect(
      await bench.versions.withdraw(datanet, [rows[0] as number], 'user_giver', 'mine', { erase: false }),
    ).toMatchObject({
      number: 2,
      rows: 1,
    });
  });

  test('of many at once one wins, in one process and in two; the others are told why', async () => {
    const datanet = await bench.datanet();
    await bench.add(datanet, completions(30));
    const second = bench.restarted(bench.client, false);
    const outcomes = await Promise.allSettled(
      [bench.versions, second, bench.versions, second].map((versions) => versions.publish(datanet, 'user_owner', '')),
    );
    const won = outcomes.filter((one) => one.status === 'fulfilled');
    expect(won).toHaveLength(1);
    for (const lost of outcomes) {
      if (lost.status === 'rejected') expect(lost.reason).toMatchObject({ status: 409, code: 'version_building' });
    }
    expect(await bench.sql('SELECT number, rows FROM datanet_versions')).toEqual([{ number: 1, rows: 30 }]);
  });

  test('rows that come in and are approved meanwhile are in this version or in the next, and in no version twice', async () => {
    const datanet = await bench.datanet();
    await bench.add(datanet, completions(2_500));
    const waiting = await bench.add(datanet, completions(50, 'meanwhile'), { state: 'pending' });
    const [one] = await Promise.all([
      bench.versions.publish(datanet, 'user_owner', ''),
      new Promise((resolve) => setTimeout(resolve, 1)).then(() => bench.approve(waiting)),
    ]);
    const two = one.rows === 2_550 ? null : await bench.versions.publish(datanet, 'user_owner', '');
    expect(two?.rows ?? one.rows).toBe(2_550);
    expect(one.root).toBe(await rootOf(await seqsOf(datanet, 1)));
  });
});

describe('withdrawing', () => {
  test('makes a version without the rows; the one before keeps them, and their text', async () => {
    const datanet = await bench.datanet();
    const rows = await bench.add(datanet, completions(6));
    const one = await bench.versions.publish(datanet, 'user_owner', '');
    const gone = [rows[1], rows[4]] as number[];
    const told: unknown[] = [];
    bench.versions.onWithdrawn = async (of, version, seqs) => {
      told.push([of.id, version.number, seqs]);
    };
    const two = await bench.versions.withdraw(datanet, [...gone, ...gone], 'user_giver', 'I want them back.', {
      erase: false,
    });
    const left = rows.filter((row) => !gone.includes(row));
    expect(two).toMatchObject({
      number: 2,
      cause: 'withdrawal',
      notes: 'I want them back.',
      rows: 4,
      added: 0,
      removed: 2,
      root: await rootOf(left),
    });
    expect(told).toEqual([[datanet.id, 2, gone]]);
    expect(await seqsOf(datanet, 1)).toEqual(rows);
    expect(await seqsOf(datanet, 2)).toEqual(left);
    expect(await bench.versions.get(datanet.id, 1)).toEqual(one);
    expect(await bench.read(datanet.id)).toMatchObject({ version: 2, rows: 4 });
    const kept = await bench.sql(
      'SELECT state, state_reason AS reason, content FROM datanet_rows WHERE removed_in = 2',
    );
    expect(kept).toHaveLength(2);
    for (const row of kept) {
      expect(row).toMatchObject({ state: 'withdrawn', reason: 'I want them back.', content: expect.any(String) });
    }
  });

  test('approved rows that wait for their first version are not taken along by a withdrawal', async () => {
    const datanet = await bench.datanet();
    const rows = await bench.add(datanet, completions(3));
    await bench.versions.publish(datanet, 'user_owner', '');
    const waiting = await bench.add(datanet, completions(2, 'waiting'));
    await bench.versions.withdraw(datanet, [rows[0] as number], 'user_giver', 'x', { erase: false });
    expect(await seqsOf(datanet, 2)).toEqual(rows.slice(1));
    const three = await bench.versions.publish(datanet, 'user_owner', '');
    expect(await seqsOf(datanet, 3)).toEqual([...rows.slice(1), ...waiting]);
    expect(three.added).toBe(2);
  });

  test('rows in no version are withdrawn without one, and never published afterwards', async () => {
    const datanet = await bench.datanet();
    const approved = await bench.add(datanet, completions(2));
    const pending = await bench.add(datanet, completions(2, 'pending'), { state: 'pending' });
    const gone = [approved[0], pending[0]] as number[];
    expect(await bench.versions.withdraw(datanet, gone, 'user_giver', 'no', { erase: false })).toBeNull();
    expect(await bench.sql('SELECT number FROM datanet_versions')).toEqual([]);
    await bench.versions.publish(datanet, 'user_owner', '');
    expect(await seqsOf(datanet, 1)).toEqual([approved[1]]);
    // Again, or of rows of another Datanet: nothing happens.
    const other = await bench.datanet();
    const theirs = await bench.add(other, completions(1));
    await bench.versions.publish(other, 'user_owner', '');
    expect(
      await bench.versions.withdraw(datanet, [...gone, ...theirs], 'user_giver', 'no', { erase: true }),
    ).toBeNull();
    expect(
      await bench.sql('SELECT state, content IS NULL AS erased FROM datanet_rows WHERE datanet_id = ?', [other.id]),
    ).toEqual([{ state: 'approved', erased: 0 }]);
  });

  test('all rows may go: the empty version has the root of nothing', async () => {
    const datanet = await bench.datanet();
    const rows = await bench.add(datanet, completions(3));
    await bench.versions.publish(datanet, 'user_owner', '');
    const two = (await bench.versions.withdraw(datanet, rows, 'user_owner', 'all', { erase: false })) as VersionRow;
    expect(two).toMatchObject({ rows: 0, removed: 3, root: CompactRange.empty().root().toString('hex') });
    expect(parseCheckpoint(two.checkpoint).size).toBe(0n);
    expect((two.statistics as unknown as VersionStatistics).score_mean).toBeNull();
  });

  test('erased rows leave no text, no words in the search and no signature; their leaves stay, and so do all roots', async () => {
    const datanet = await bench.datanet();
    const rows = await bench.add(datanet, completions(4));
    const waiting = await bench.add(datanet, completions(1, 'waiting'), { state: 'pending' });
    const one = await bench.versions.publish(datanet, 'user_owner', '');
    const gone = [rows[0], ...waiting] as number[];
    await bench.versions.withdraw(datanet, gone, 'user_giver', 'private', { erase: true });
    for (const row of gone) {
      const [found] = await bench.sql(
        `SELECT content, reasons, state, (SELECT count(*) FROM datanet_bands WHERE row = seq) AS bands,
          (SELECT count(*) FROM datanet_signatures WHERE row = seq) AS signatures,
          (SELECT count(*) FROM datanet_rows_text WHERE rowid = seq) AS words FROM datanet_rows WHERE seq = ?`,
        [row],
      );
      expect(found).toEqual({ content: null, reasons: '[]', state: 'withdrawn', bands: 0, signatures: 0, words: 0 });
    }
    const [others] = await bench.sql(
      `SELECT count(content) AS contents, (SELECT count(*) FROM datanet_bands) AS bands, (SELECT count(*) FROM datanet_signatures) AS signatures
        FROM datanet_rows`,
    );
    expect(others).toEqual({ contents: 3, bands: 3 * 14, signatures: 3 });
    expect(one.root).toBe(await rootOf(rows));
    const proof = await bench.restarted().proof(datanet.id, 1, gone[0] as number, { content: true });
    expect(proof).toMatchObject({ leafIndex: 0 });
    expect(proof).not.toHaveProperty('content');
  });

  test('what was withdrawn can be erased later, without a new version', async () => {
    const datanet = await bench.datanet();
    const rows = await bench.add(datanet, completions(2));
    await bench.versions.publish(datanet, 'user_owner', '');
    await bench.versions.withdraw(datanet, [rows[0] as number], 'user_giver', 'x', { erase: false });
    const before = await bench.read(datanet.id);
    expect(await bench.versions.withdraw(datanet, [rows[0] as number], 'user_giver', 'x', { erase: true })).toBeNull();
    expect(await bench.sql('SELECT content FROM datanet_rows WHERE seq = ?', [rows[0] as number])).toEqual([
      { content: null },
    ]);
    const after = await bench.read(datanet.id);
    expect(after.version).toBe(before.version);
    expect(after.updatedAt).toBeGreaterThan(before.updatedAt);
  });

  test('waits for a version under way instead of being refused', async () => {
    const datanet = await bench.datanet();
    const rows = await bench.add(datanet, completions(1_200));
    const [one, two] = await Promise.all([
      bench.versions.publish(datanet, 'user_owner', ''),
      new Promise((resolve) => setTimeout(resolve, 1)).then(() =>
        bench.versions.withdraw(datanet, rows.slice(0, 5), 'user_giver', 'x', { erase: false }),
      ),
    ]);
    expect(one).toMatchObject({ number: 1, rows: 1_200 });
    expect(two).toMatchObject({ number: 2, rows: 1_195, removed: 5 });
  });
});

test('after any sequence of acts every version is what it was when it was made, and differences are differences', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(
        fc.oneof(
          fc.record({ act: fc.constant('add' as const), count: fc.integer({ min: 1, max: 4 }) }),
          fc.record({ act: fc.constant('publish' as const) }),
          fc.record({
            act: fc.constant('withdraw' as const),
            which: fc.nat(30),
            count: fc.integer({ min: 1, max: 3 }),
            erase: fc.boolean(),
          }),
        ),
        { minLength: 3, maxLength: 12 },
      ),
      async (acts) => {
        const datanet = await bench.datanet();
        const all: number[] = [];
        const model = new Map<number, number[]>();
        let waiting: number[] = [];
        let newest: number[] = [];
        for (const [step, act] of acts.entries()) {
          if (act.act === 'add') {
            const rows = await bench.add(datanet, completions(act.count, `step ${step}`));
            all.push(...rows);
            waiting.push(...rows);
          } else if (act.act === 'publish') {
            if (waiting.length === 0) continue;
            newest = [...newest, ...waiting].sort((a, b) => a - b);
            waiting = [];
            const version = await bench.versions.publish(datanet, 'user_owner', '');
            model.set(version.number, newest);
          } else {
            const rows = all.slice(act.which, act.which + act.count);
            if (rows.length === 0) continue;
            const version = await bench.versions.withdraw(datanet, rows, 'user_giver', 'x', { erase: act.erase });
            const left = newest.filter((row) => !rows.includes(row));
            expect(version === null).toBe(left.length === newest.length);
            waiting = waiting.filter((row) => !rows.includes(row));
            newest = left;
            if (version !== null) model.set(version.number, left);
          }
        }
        for (const [number, rows] of model) {
          expect(await seqsOf(datanet, number)).toEqual(rows);
          expect((await bench.versions.get(datanet.id, number))?.root).toBe(await rootOf(rows));
          for (const [other, others] of model) {
            const added = others.filter((row) => !rows.includes(row));
            const removed = rows.filter((row) => !others.includes(row));
            expect(await bench.versions.countDifference(datanet.id, number, other)).toEqual({
              added: added.length,
              removed: removed.length,
            });
            const listed = await bench.versions.differingRows(datanet.id, other, number, 0, 100);
            expect(listed.map(({ seq }) => seq)).toEqual(added);
          }
        }
      },
    ),
    { numRuns: 25 },
  );
});

test('however many ask for a proof at once, the tree of a version is built once', async () => {
  const datanet = await bench.datanet();
  const seqs = await bench.add(datanet, completions(50));
  await bench.versions.publish(datanet, 'user_owner', '');
  let reads = 0;
  const counting = new Proxy(bench.client, {
    get(target, name) {
      const value = Reflect.get(target, name);
      if (typeof value !== 'function') return value;
      return (...args: unknown[]) => {
        const [first] = args as [{ sql?: string }];
        if (name === 'execute' && first.sql?.includes('hex(leaf_hash)')) reads += 1;
        return value.apply(target, args);
      };
    },
  });
  // As versions are that were published before tiles were stored.
  await bench.sql('DELETE FROM version_tiles');
  const versions = bench.restarted(counting);
  const proofs = await Promise.all(seqs.map((seq) => versions.proof(datanet.id, 1, seq, { content: false })));
  expect(proofs.map((proof) => proof?.leafIndex)).toEqual(seqs.map((_, index) => index));
  // The whole tree once, then a block of leaves for each.
  expect(reads).toBe(1 + seqs.length);
  expect(await bench.sql('SELECT count(*) AS count FROM version_tiles')).toEqual([{ count: 1 }]);
});

test('whoever may not publish any more when all is done publishes nothing, and nothing is left of it', async () => {
  const datanet = await bench.datanet();
  await bench.add(datanet, completions(3));
  let asked = 0;
  const refuse = async () => {
    asked += 1;
    expect(await bench.sql('SELECT count(*) AS count FROM datanet_rows WHERE added_in = 1')).toEqual([{ count: 3 }]);
    throw new Error('no longer');
  };
  await expect(bench.versions.publish(datanet, 'user_owner', '', refuse)).rejects.toThrow('no longer');
  expect(asked).toBe(1);
  expect(await bench.sql('SELECT count(*) AS count FROM datanet_versions')).toEqual([{ count: 0 }]);
  expect(await bench.sql('SELECT count(added_in) AS count FROM datanet_rows')).toEqual([{ count: 0 }]);
});

test('a proof of any row of a tree of several blocks verifies, with tiles as they were stored', async () => {
  const datanet = await bench.datanet();
  const seqs = await bench.add(datanet, completions(600));
  const version = await bench.versions.publish(datanet, 'user_owner', '');
  const again = bench.restarted();
  // proof() itself checks against the signed root; the first, the last, and both sides of each edge.
  for (const at of [0, 1, 255, 256, 511, 512, 599]) {
    const proof = await again.proof(datanet.id, version.number, seqs[at] as number, { content: false });
    expect(proof?.leafIndex).toBe(at);
  }
  await bench.sql('UPDATE version_tiles SET hashes = zeroblob(length(hashes))');
  await expect(
    bench.restarted().proof(datanet.id, version.number, seqs[0] as number, { content: false }),
  ).rejects.toThrow(/database was changed/);
});

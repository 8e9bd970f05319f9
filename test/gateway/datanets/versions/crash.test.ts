/** A process that makes a version may end between any two statements, or between a statement and its answer. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { DatanetRow } from '../../../../gateway/db/datanet-schema.ts';
import { type Bench, completions, Failed, failing, startBench } from './support.ts';

let bench: Bench;
beforeEach(async () => {
  bench = await startBench();
});
afterEach(() => bench.close());

/** All that must be the same when nothing happened. */
async function stateOf(datanet: DatanetRow) {
  return {
    datanet: await bench.sql('SELECT version, rows FROM datanets WHERE id = ?', [datanet.id]),
    versions: await bench.sql('SELECT number, state, root, rows FROM datanet_versions WHERE datanet_id = ?', [
      datanet.id,
    ]),
    rows: await bench.sql(
      'SELECT seq, state, state_reason, added_in, removed_in, content IS NULL AS erased FROM datanet_rows WHERE datanet_id = ? ORDER BY seq',
      [datanet.id],
    ),
  };
}

/** Kills at every call until an attempt gets through; @returns how many kills that were. */
async function killedEverywhere(
  when: 'before' | 'after',
  attempt: (versions: ReturnType<Bench['restarted']>) => Promise<unknown>,
  check: (outcome: 'done' | 'killed') => Promise<void>,
): Promise<number> {
  for (let at = 1; at < 200; at += 1) {
    const broken = failing(bench.client, at, when);
    let outcome: 'done' | 'killed' = 'done';
    await attempt(bench.restarted(broken.client)).catch((error: unknown) => {
      // Drizzle wraps what the client throws.
      const cause = error instanceof Failed ? error : (error as Error).cause;
      if (!(cause instanceof Failed)) throw error;
      outcome = 'killed';
    });
    await check(outcome);
    if (!broken.hit()) return at - 1;
  }
  throw new Error('it never got through');
}

describe.each(['before', 'after'] as const)('killed %s any statement', (when) => {
  test('a publication is there as a whole or not at all, and can be made again', async () => {
    const kills = await (async () => {
      let datanet = await bench.datanet();
      await bench.add(datanet, completions(3));
      const pending = { before: await stateOf(datanet) };
      return killedEverywhere(
        when,
        (versions) => versions.publish(datanet, 'user_owner', ''),
        async () => {
          await bench.restarted().recover();
          const after = await stateOf(datanet);
          if (after.versions.length === 0) expect(after).toEqual(pending.before);
          else {
            expect(after.versions).toMatchObject([{ number: 1, state: 'published', rows: 3 }]);
            expect(after.datanet).toEqual([{ version: 1, rows: 3 }]);
            expect(after.rows.every(({ added_in }) => added_in === 1)).toBe(true);
          }
          if (after.versions.length === 0) await bench.versions.publish(datanet, 'user_owner', '');
          expect(await bench.versions.get(datanet.id, 1)).toMatchObject({ rows: 3, added: 3 });
          datanet = await bench.datanet();
          await bench.add(datanet, completions(3));
          pending.before = await stateOf(datanet);
        },
      );
    })();
    // As many statements as there are steps: a test that killed nothing would show nothing.
    expect(kills).toBeGreaterThanOrEqual(7);
  });

  test('a withdrawal is finished or undone, the text is gone or there, and whoever marks adapters is told of all that happened', async () => {
    let datanet: DatanetRow;
    let rows: number[] = [];
    let before: Awaited<ReturnType<typeof stateOf>>;
    const told: number[][] = [];
    const listen = (versions: ReturnType<Bench['restarted']>) => {
      versions.onWithdrawn = async (_, __, seqs) => {
        told.push(seqs);
      };
      return versions;
    };
    const fresh = async () => {
      told.length = 0;
      datanet = await bench.datanet();
      rows = await bench.add(datanet, completions(4));
      await bench.versions.publish(datanet, 'user_owner', '');
      before = await stateOf(datanet);
    };
    await fresh();
    let undone = 0;
    let finished = 0;
    const kills = await killedEverywhere(
      when,
      (versions) => listen(versions).withdraw(datanet, rows.slice(0, 2), 'user_giver', 'mine', { erase: true }),
      async (outcome) => {
        await listen(bench.restarted()).recover();
        const after = await stateOf(datanet);
        if (after.versions.length === 1) {
          expect(after).toEqual(before);
          expect(outcome).toBe('killed');
          expect(told).toEqual([]);
          undone += 1;
        } else {
          expect(after.versions[1]).toMatchObject({ number: 2, state: 'published', rows: 2 });
          expect(after.datanet).toEqual([{ version: 2, rows: 2 }]);
          const gone = after.rows.slice(0, 2);
          expect(gone.every((row) => row.erased === 1 && row.removed_in === 2 && row.state === 'withdrawn')).toBe(true);
          expect(after.rows.slice(2)).toEqual(before.rows.slice(2));
          expect(told.length).toBeGreaterThanOrEqual(1);
          for (const seqs of told) expect(seqs).toEqual(rows.slice(0, 2));
          const [left] = await bench.sql(
            'SELECT count(*) AS count FROM datanet_signatures WHERE row IN (?, ?)',
            rows.slice(0, 2),
          );
          expect(left).toEqual({ count: 0 });
          finished += 1;
        }
        await fresh();
      },
    );
    expect(kills).toBeGreaterThanOrEqual(10);
    expect(undone).toBeGreaterThanOrEqual(3);
    expect(finished).toBeGreaterThanOrEqual(5);
  });
});

/** The n-th transaction of several statements fails, before it or with its answer lost; everything else works. */
function flaky(nth: number, when: 'before' | 'after') {
  let batches = 0;
  return new Proxy(bench.client, {
    get(target, property) {
      const value: unknown = Reflect.get(target, property, target);
      if (typeof value !== 'function') return value;
      const call = value.bind(target) as (...args: unknown[]) => Promise<unknown>;
      if (property !== 'batch') return call;
      return async (...args: unknown[]) => {
        batches += 1;
        if (batches !== nth) return call(...args);
        if (when === 'after') await call(...args);
        throw new Failed('the disk is full');
      };
    },
  });
}

test('a passing failure is undone at once, without a restart', async () => {
  const datanet = await bench.datanet();
  await bench.add(datanet, completions(3));
  const before = await stateOf(datanet);
  const versions = bench.restarted(flaky(1, 'before'));
  await expect(versions.publish(datanet, 'user_owner', '')).rejects.toThrow(/disk is full/);
  expect(await stateOf(datanet)).toEqual(before);
  expect(await versions.publish(datanet, 'user_owner', '')).toMatchObject({ number: 1, rows: 3 });
});

test('a version that was published all the same is no failure: only the answer got lost', async () => {
  const datanet = await bench.datanet();
  const rows = await bench.add(datanet, completions(3));
  const one = await bench.restarted(flaky(1, 'after')).publish(datanet, 'user_owner', '');
  expect(one).toMatchObject({ number: 1, state: 'published', rows: 3 });
  // Of a withdrawal the first transaction marks, the second publishes; a failure of it after the seal is made good at once.
  for (const [at, when] of ['after', 'before'].entries()) {
    const versions = bench.restarted(flaky(2, when as 'after'));
    const gone = [rows[at] as number];
    expect(await versions.withdraw(datanet, gone, 'user_giver', 'x', { erase: false })).toMatchObject({
      number: 2 + at,
      state: 'published',
      removed: 1,
    });
  }
  expect(await bench.read(datanet.id)).toMatchObject({ version: 3, rows: 1 });
});

test('a withdrawal whose marks cannot be written is not published, and is finished by the next one who makes a version', async () => {
  const datanet = await bench.datanet();
  const rows = await bench.add(datanet, completions(3));
  await bench.versions.publish(datanet, 'user_owner', '');
  bench.versions.onWithdrawn = () => Promise.reject(new Error('no marks today'));
  await expect(
    bench.versions.withdraw(datanet, [rows[0] as number], 'user_giver', 'x', { erase: false }),
  ).rejects.toThrow('no marks today');
  expect(await bench.versions.get(datanet.id, 2)).toBeNull();
  const told: number[][] = [];
  bench.versions.onWithdrawn = async (_, __, seqs) => {
    told.push(seqs);
  };
  await bench.add(datanet, completions(1, 'more'));
  expect(await bench.versions.publish(datanet, 'user_owner', '')).toMatchObject({ number: 3, rows: 3, added: 1 });
  expect(await bench.versions.get(datanet.id, 2)).toMatchObject({ cause: 'withdrawal', removed: 1 });
  expect(told).toEqual([[rows[0]]]);
});

test('where gateways share a database, a version under way elsewhere is left alone until it is old', async () => {
  const datanet = await bench.datanet();
  await bench.add(datanet, completions(3));
  await bench.sql(
    `INSERT INTO datanet_versions (datanet_id, number, state, cause, notes, licence, terms, created_by, created_at)
      VALUES (?, 1, 'building', 'publish', '', 'MIT', '', 'user_owner', ?)`,
    [datanet.id, bench.now.value],
  );
  const shared = bench.restarted(bench.client, false);
  await shared.recover();
  await expect(shared.publish(datanet, 'user_owner', '')).rejects.toMatchObject({ code: 'version_building' });
  bench.now.value += 11 * 60_000;
  expect(await shared.publish(datanet, 'user_owner', '')).toMatchObject({ number: 1, rows: 3 });
});

import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import type { processIngester } from '../../../gateway/datanets/contributions/process-ingester.ts';
import { limits } from '../../../gateway/limits.ts';
import { until } from '../../support/eventually.ts';
import { chatRows, type DatanetRig, LICENCE, startDatanetRig, type View } from './rig.ts';

/** Changes limits until the test is over. */
function shorten(changes: Partial<Record<keyof typeof limits, number>>): void {
  const kept = { ...limits };
  Object.assign(limits, changes);
  onTestFinished(() => void Object.assign(limits, kept));
}
const count = async (rig: DatanetRig, sql: string, ...args: (string | number)[]) =>
  Number(Object.values((await rig.database.db.$client.execute({ sql, args })).rows[0] ?? {})[0]);
type Apart = ReturnType<typeof processIngester>;
const lines = (rows: unknown[]) => rows.map((row) => `${JSON.stringify(row)}\n`).join('');

async function leftOf(rig: DatanetRig, net: View) {
  return {
    rows: await count(rig, 'SELECT count(*) FROM datanet_rows WHERE datanet_id = ?', net.id),
    signatures: await count(rig, 'SELECT count(*) FROM datanet_signatures'),
    bands: await count(rig, 'SELECT count(*) FROM datanet_bands'),
    texts: await count(rig, "SELECT count(*) FROM datanet_rows_text WHERE datanet_rows_text MATCH 'net : dn1'"),
  };
}
const NOTHING = { rows: 0, signatures: 0, bands: 0, texts: 0 };

test('in processes of their own: contributions of several people are read, and requests are answered meanwhile', async () => {
  const rig = await startDatanetRig({ ingestApart: true });
  try {
    const ann = await rig.person('Ann');
    const nets = [await rig.datanet(ann), await rig.datanet(ann)];
    for (const [index, net] of nets.entries())
      expect((await rig.send(ann, net, 'rows.jsonl', lines(chatRows(2_000, index * 10_000)))).status).toBe(202);
    let slowest = 0;
    let asked = 0;
    const done = rig.app.services.datanets.contributions.idle();
    let reading = true;
    const began = performance.now();
    void done.then(() => {
      reading = false;
    });
    while (reading) {
      const started = performance.now();
      expect((await ann.call('PATCH', `/api/datanets/${nets[0]?.id}`, { summary: `at ${asked}` })).status).toBe(200);
      slowest = Math.max(slowest, performance.now() - started);
      asked += 1;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    for (const net of nets)
      expect(await count(rig, 'SELECT count(*) FROM datanet_rows WHERE datanet_id = ?', net.id)).toBe(2_000);
    expect(asked).toBeGreaterThan(3);
    expect(slowest).toBeLessThan((performance.now() - began) / 2);
  } finally {
    await rig.close();
  }
});

test('a process that dies fails its contribution, says so, and leaves nothing half read; the next one is read', async () => {
  const rig = await startDatanetRig({ ingestApart: true });
  try {
    const { ingester } = rig.app.services.datanets;
    const ann = await rig.person('Ann');
    const net = await rig.datanet(ann);
    const { id } = await rig.json(await rig.send(ann, net, 'rows.jsonl', lines(chatRows(20_000))), 202);
    await until(async () => (await leftOf(rig, net)).rows > 0);
    for (const { child } of (ingester as Apart).processes) child.kill('SIGKILL');
    await rig.app.services.datanets.contributions.idle();
    expect(await rig.contribution(ann, net, id)).toMatchObject({
      state: 'failed',
      rows: 0,
      error: { code: 'processing_failed' },
    });
    expect(await leftOf(rig, net)).toEqual(NOTHING);
    expect(await rig.contribute(ann, net, chatRows(5))).toMatchObject({ state: 'ready', rows: 5 });
  } finally {
    await rig.close();
  }
});

test('stopping in the middle leaves the contribution to the next start, which reads it from the beginning', async () => {
  // Small batches, so that there is a middle.
  shorten({ ingestBatchRows: 100 });
  const rig = await startDatanetRig();
  try {
    const ann = await rig.person('Ann');
    const net = await rig.datanet(ann);
    const rows = chatRows(1_500);
    const { id } = await rig.json(
      await ann.call('POST', `/api/datanets/${net.id}/contributions`, { rows, licence: LICENCE }),
      202,
    );
    const { contributions } = rig.app.services.datanets;
    await until(async () => (await leftOf(rig, net)).rows > 0);
    await contributions.stop();
    const half = await leftOf(rig, net);
    expect(half.rows).toBeLessThan(1_500);
    expect((await rig.contribution(ann, net, id)).state).toBe('processing');
    // The process that comes next.
    const next = await rig.restarted();
    await next.start({ exclusive: true });
    await next.contributions.idle();
    expect(await rig.contribution(ann, net, id)).toMatchObject({ state: 'ready', rows: 1_500, refused: 0 });
    expect((await leftOf(rig, net)).signatures).toBe(1_500);
    await next.stop();
  } finally {
    await rig.close();
  }
});

test('a removal that a crash interrupted is brought to its end; files that nobody knows are swept', async () => {
  const rig = await startDatanetRig();
  try {
    const ann = await rig.person('Ann');
    const net = await rig.datanet(ann);
    const done = await rig.contribute(ann, net, chatRows(300));
    expect(await rig.app.services.datanets.contributions.rows.beginRemoval(done.id)).toBe(true);
    const folder = join(rig.filesFolder, '..', 'contributions');
    await mkdir(folder, { recursive: true });
    await writeFile(join(folder, 'file-con_nobody'), 'x');
    await writeFile(join(folder, 'file-con_half.part'), 'x');
    await rig.app.services.datanets.start({ exclusive: true });
    await rig.app.services.datanets.contributions.idle();
    expect(await leftOf(rig, net)).toEqual(NOTHING);
    expect((await ann.call('GET', `/api/datanets/${net.id}/contributions/${done.id}`)).status).toBe(404);
    expect(await readdir(folder)).toEqual([]);
  } finally {
    await rig.close();
  }
});

test('a process that stands still when it should stop is ended, and taking back ends with it', async () => {
  shorten({ ingestStopMs: 500 });
  const rig = await startDatanetRig({ ingestApart: true });
  try {
    const ann = await rig.person('Ann');
    const net = await rig.datanet(ann);
    const { id } = await rig.json(await rig.send(ann, net, 'rows.jsonl', lines(chatRows(20_000))), 202);
    await until(async () => (await leftOf(rig, net)).rows > 0);
    const { ingester } = rig.app.services.datanets;
    const children = (ingester as Apart).processes.map(({ child }) => child);
    // Not inside a transaction: then nobody could write at all.
    for (let stopped = false; !stopped; ) {
      for (const child of children) child.kill('SIGSTOP');
      stopped = await rig.database.db.$client.execute('UPDATE datanets SET rows = rows').then(
        () => true,
        () => false,
      );
      if (!stopped) for (const child of children) child.kill('SIGCONT');
      await new Promise((resolve) => setTimeout(resolve, 7));
    }
    expect((await ann.call('DELETE', `/api/datanets/${net.id}/contributions/${id}`)).status).toBe(200);
    expect(children.map(({ signalCode }) => signalCode)).toContain('SIGKILL');
    expect(await leftOf(rig, net)).toEqual(NOTHING);
  } finally {
    await rig.close();
  }
});

import { chmodSync } from 'node:fs';
import { describe, expect, it, onTestFinished } from 'vitest';
import { ReceiptLogClient } from '../../../daemon/receipts/client.ts';
import { keyPaths } from '../../../daemon/receipts/key.ts';
import { verifyText } from '../../../daemon/receipts/verify.ts';
import { eventually } from '../../support/eventually.ts';
import { appendAll, makeReceipt, openLog, receiptsFrom, temporaryFolder } from './support.ts';

async function openClient(dataDir = temporaryFolder(), limits = {}) {
  const client = await ReceiptLogClient.open({ dataDir, limits });
  onTestFinished(() => client.close());
  return client;
}

describe('the log in its own thread', () => {
  it('does what the log does: append, get, tiles, consistency, audit, health, errors', async () => {
    const dataDir = temporaryFolder();
    const client = await openClient(dataDir);
    const appended = await appendAll(client, receiptsFrom(0, 300));
    expect(appended.map(({ leafIndex }) => leafIndex)).toEqual(Array.from({ length: 300 }, (_, i) => i));
    expect(client.size).toBe(300);
    expect(client.health()).toMatchObject({ status: 'ok', detail: '', size: 300, queued: 0 });
    expect(client.health().commits).toBeLessThan(20);
    const bundle = await client.get('rcpt_17');
    expect(verifyText(JSON.stringify(bundle), { vkey: client.vkey })).toMatchObject({ ok: true, pinned: true });
    expect(await client.getByIndex(17)).toEqual(bundle);
    expect(await client.get('rcpt_x')).toBeNull();
    expect((await client.tile('tile/0/000'))?.byteLength).toBe(8_192);
    expect(await client.tile('tile/0/009')).toBeNull();
    expect(verifyText(JSON.stringify(await client.consistency(3, 200)), { vkey: client.vkey }).ok).toBe(true);
    await expect(client.consistency(4, 301)).rejects.toMatchObject({ name: 'LogError', code: 'out_of_range' });
    await expect(client.append(makeReceipt(3, { costMicros: 1 }))).rejects.toMatchObject({ code: 'id_conflict' });
    await expect(client.append({} as never)).rejects.toMatchObject({ code: 'entry_invalid' });
    expect(await client.audit()).toEqual({ leaves: 300 });
    expect(await client.checkpoint()).toContain(`${client.origin}\n300\n`);
  });

  it('close() commits what was appended before it, and refuses what comes after', async () => {
    const dataDir = temporaryFolder();
    const client = await ReceiptLogClient.open({ dataDir });
    const appended = appendAll(client, receiptsFrom(0, 500));
    const closing = client.close();
    await expect(client.append(makeReceipt(999))).rejects.toMatchObject({ code: 'log_closed' });
    expect(await appended).toHaveLength(500);
    await closing;
    await client.close();
    expect(client.health()).toMatchObject({ status: 'closed' });
    expect((await openLog({ dataDir })).size).toBe(500);
  });

  it('opening fails with the error of the log', async () => {
    const dataDir = temporaryFolder();
    await (await ReceiptLogClient.open({ dataDir })).close();
    chmodSync(keyPaths(dataDir).key, 0o666);
    await expect(ReceiptLogClient.open({ dataDir })).rejects.toMatchObject({
      name: 'LogError',
      code: 'log_key_insecure',
    });
  });

  it('pushes back when too many calls wait', async () => {
    const client = await openClient(undefined, { queueMax: 10 });
    const results = await Promise.allSettled(receiptsFrom(0, 12).map((receipt) => client.append(receipt)));
    expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(10);
    expect(results[11]).toMatchObject({ reason: { code: 'log_queue_full' } });
  });
});

describe('when the thread dies', () => {
  it.each([
    ['is terminated', (client: ReceiptLogClient) => void client.worker?.terminate()],
    ['throws', (client: ReceiptLogClient) => client.worker?.postMessage(null)],
  ])('because it %s: calls reject, health says so, it comes back, and repeating is safe', async (_, kill) => {
    const client = await openClient();
    await client.append(makeReceipt(0));
    const results = Promise.allSettled(receiptsFrom(1, 400).map((receipt) => client.append(receipt)));
    kill(client);
    // A message that is no request kills the thread only after what came before it.
    const late = Promise.allSettled(receiptsFrom(401, 100).map((receipt) => client.append(receipt)));
    const settled = [...(await results), ...(await late)];
    for (const result of settled)
      if (result.status === 'rejected') expect(result.reason).toMatchObject({ code: 'log_unavailable' });
    expect(settled.filter(({ status }) => status === 'rejected').length).toBeGreaterThan(0);
    expect(client.health()).toMatchObject({ status: 'degraded', detail: expect.stringContaining('died') });
    // Waits for the new thread.
    const repeated = await appendAll(client, receiptsFrom(0, 501));
    expect(new Set(repeated.map(({ leafIndex }) => leafIndex)).size).toBe(501);
    expect(client.health()).toMatchObject({ status: 'ok', size: 501 });
    expect(await client.audit()).toEqual({ leaves: 501 });
    for (const [i, result] of settled.entries())
      if (result.status === 'fulfilled') expect(result.value).toEqual(repeated[i + 1]);
  });

  it('and can not open the log again, it stays failed and says why', async () => {
    const dataDir = temporaryFolder();
    const client = await openClient(dataDir);
    chmodSync(keyPaths(dataDir).key, 0o644);
    await client.worker?.terminate();
    await eventually(() =>
      expect(client.health()).toMatchObject({ status: 'failed', detail: expect.stringContaining('chmod 600') }),
    );
    await expect(client.append(makeReceipt(1))).rejects.toMatchObject({ code: 'log_key_insecure' });
    chmodSync(keyPaths(dataDir).key, 0o600);
    await client.restart();
    expect(await client.append(makeReceipt(1))).toEqual({ leafIndex: 0 });
    expect(client.health().status).toBe('ok');
  });
});

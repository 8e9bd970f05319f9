import { beforeEach, describe, expect, it } from 'vitest';
import type { ReceiptLog } from '../../../daemon/receipts/log.ts';
import { receiptRoutes } from '../../../daemon/receipts/routes.ts';
import { verifyText } from '../../../daemon/receipts/verify.ts';
import { appendAll, openLog, receiptsFrom, temporaryFolder } from './support.ts';

describe('the log over HTTP', () => {
  let log: ReceiptLog;
  let get: (path: string) => Promise<Response>;

  beforeEach(async () => {
    log = await openLog({ dataDir: temporaryFolder() });
    await appendAll(log, receiptsFrom(0, 300));
    const app = receiptRoutes(() => log);
    get = async (path) => app.request(path);
  });

  it('gives a receipt that verifies, and what a request has cost', async () => {
    const answer = await get('/receipts/rcpt_123');
    expect(answer.status).toBe(200);
    expect(answer.headers.get('cache-control')).toBe('no-cache');
    expect(verifyText(await answer.text(), { vkey: log.vkey }).ok).toBe(true);
    expect(await (await get('/receipts/by-request/123')).json()).toEqual({
      receiptId: 'rcpt_123',
      costMicros: 23,
      usage: { promptTokens: 12, cachedTokens: 4, completionTokens: 34 },
    });
  });

  it('serves checkpoint, key and tiles with the types and caching of tlog-tiles', async () => {
    const checkpoint = await get('/log/checkpoint');
    expect(checkpoint.headers.get('content-type')).toBe('text/plain; charset=utf-8');
    expect(checkpoint.headers.get('cache-control')).toBe('no-cache');
    expect(await checkpoint.text()).toBe(await log.checkpoint());
    expect(await (await get('/log/vkey')).text()).toBe(`${log.vkey}\n`);
    for (const [path, bytes] of [
      ['tile/0/000', 8_192],
      ['tile/0/001.p/44', 1_408],
      ['tile/1/000.p/1', 32],
    ] as const) {
      const tile = await get(`/log/${path}`);
      expect(tile.headers.get('content-type')).toBe('application/octet-stream');
      expect(tile.headers.get('cache-control')).toContain('immutable');
      expect((await tile.arrayBuffer()).byteLength).toBe(bytes);
    }
    expect((await get('/log/tile/entries/001.p/44')).status).toBe(200);
  });

  it('proves its growth from any size to any later one', async () => {
    for (const query of ['from=17&to=200', 'from=17', 'from=0', 'from=300&to=300'])
      expect(
        verifyText(await (await get(`/log/consistency?${query}`)).text(), { vkey: log.vkey }),
        query,
      ).toMatchObject({ ok: true, kind: 'consistency' });
  });

  it.each([
    ['/receipts/none', 404, 'not_found'],
    ['/receipts/by-request/none', 404, 'not_found'],
    ['/receipts/%00', 404, 'not_found'],
    ["/receipts/'%20OR%201=1--", 404, 'not_found'],
    ['/log/tile/0/002', 404, 'not_found'],
    ['/log/tile/0/001', 404, 'not_found'],
    ['/log/tile/0/../../etc', 404, null],
    ['/log/tile/x', 404, 'not_found'],
    ['/log/consistency', 400, 'invalid_request_error'],
    ['/log/consistency?from=-1', 400, 'invalid_request_error'],
    ['/log/consistency?from=1e3', 400, 'invalid_request_error'],
    ['/log/consistency?from=9999999999999999999', 400, 'invalid_request_error'],
    ['/log/consistency?from=5&to=4', 400, 'invalid_request_error'],
    ['/log/consistency?from=5&to=301', 400, 'invalid_request_error'],
  ])('%s is answered with %i and an error body', async (path, status, code) => {
    const answer = await get(path);
    expect(answer.status).toBe(status);
    if (code) expect(await answer.json()).toMatchObject({ error: { status, code, message: expect.any(String) } });
  });

  it('answers 503 while the log is not open, and tells nothing of paths when it fails', async () => {
    expect((await receiptRoutes(() => null).request('/log/checkpoint')).status).toBe(503);
    await log.close();
    const answer = await get('/receipts/rcpt_1');
    expect(answer.status).toBe(503);
    expect(await answer.text()).not.toMatch(/daemon\.db|SQLITE|node_modules/);
  });
});

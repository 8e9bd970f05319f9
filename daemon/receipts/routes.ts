/**
 * The log over HTTP (C2SP tlog-tiles and receipts), for daemon/server.ts to mount:
 *   GET /receipts/{id}                        ReceiptBundle
 *   GET /receipts/by-request/{requestId}      ReceiptSettlement
 *   GET /log/checkpoint, /log/tile/…, /log/vkey
 *   GET /log/consistency?from=M[&to=N]        ConsistencyBundle
 * Authentication is the server's. Errors have the daemon's error body.
 */
import { type Context, Hono } from 'hono';
import { DaemonError } from '../errors.ts';
import { type Receipt, type ReceiptSettlement, receiptIdOf } from '../protocol.ts';
import type { ReceiptLogApi } from './api.ts';
import { isLogError } from './errors.ts';

/** Tiles never change; the checkpoint does with every receipt. */
const IMMUTABLE = 'public, max-age=31536000, immutable';
const MUTABLE = 'no-cache';

type Reader = Pick<ReceiptLogApi, 'get' | 'checkpoint' | 'tile' | 'consistency' | 'vkey' | 'size'>;

/** `log` is asked for at each request, so that the server can be made before the log is open; null answers 503. */
export function receiptRoutes(log: () => Reader | null): Hono {
  const app = new Hono();
  const open = () => {
    const current = log();
    if (!current)
      throw new DaemonError('receipt_log_unavailable', 'The receipt log is not open yet: try again in a moment.');
    return current;
  };

  app.onError((error, c) => answer(c, toDaemonError(error)));

  app.get('/receipts/by-request/:requestId', async (c) => {
    const id = receiptIdOf(c.req.param('requestId'));
    const bundle = await open().get(id);
    if (!bundle) throw new DaemonError('not_found', 'This request has no receipt yet, or never had one.', 'requestId');
    const { costMicros, promptTokens, cachedTokens, completionTokens } = JSON.parse(bundle.entry) as Receipt;
    const settlement: ReceiptSettlement = {
      receiptId: id,
      costMicros,
      usage: { promptTokens, cachedTokens, completionTokens },
    };
    return c.json(settlement, 200, { 'cache-control': MUTABLE });
  });

  app.get('/receipts/:id', async (c) => {
    const bundle = await open().get(c.req.param('id'));
    if (!bundle) throw new DaemonError('not_found', 'There is no receipt with this id.', 'id');
    return c.json(bundle, 200, { 'cache-control': MUTABLE });
  });

  app.get('/log/checkpoint', async (c) =>
    c.body(await open().checkpoint(), 200, { 'content-type': 'text/plain; charset=utf-8', 'cache-control': MUTABLE }),
  );

  app.get('/log/vkey', (c) =>
    c.body(`${open().vkey}\n`, 200, { 'content-type': 'text/plain; charset=utf-8', 'cache-control': MUTABLE }),
  );

  app.get('/log/tile/:rest{.+}', async (c) => {
    const tile = await open().tile(`tile/${c.req.param('rest')}`);
    if (!tile)
      throw new DaemonError(
        'not_found',
        'The log has no such tile: paths read tile/<level>/<number>[.p/<width>], within the size of the checkpoint.',
      );
    return c.body(Uint8Array.from(tile), 200, {
      'content-type': 'application/octet-stream',
      'cache-control': IMMUTABLE,
    });
  });

  app.get('/log/consistency', async (c) => {
    const current = open();
    const from = treeSize(c.req.query('from'), 'from');
    const to = c.req.query('to') === undefined ? undefined : treeSize(c.req.query('to'), 'to');
    return c.json(await current.consistency(from, to), 200, { 'cache-control': MUTABLE });
  });

  return app;
}

function treeSize(text: string | undefined, param: string): number {
  if (text === undefined || !/^(0|[1-9][0-9]{0,14})$/.test(text))
    throw new DaemonError('invalid_request_error', `"${param}" must be a tree size: a whole number from 0.`, param);
  return Number(text);
}

function answer(c: Context, error: DaemonError): Response {
  return c.json(error.body(), error.status as 400 | 404 | 500 | 503, { 'cache-control': 'no-store' });
}

/** Log errors keep their sentence where it helps the caller; paths and causes stay in the daemon's own log. */
function toDaemonError(error: unknown): DaemonError {
  if (error instanceof DaemonError) return error;
  if (isLogError(error, 'out_of_range')) return new DaemonError('invalid_request_error', error.message, 'to');
  if (isLogError(error, 'log_tampered'))
    return new DaemonError(
      'receipt_log_unavailable',
      'The receipt log does not match what was signed: it must be examined before it is served.',
    );
  if (isLogError(error))
    return new DaemonError('receipt_log_unavailable', "The receipt log can't be read at the moment: try again.");
  return new DaemonError('internal_error', 'The receipt log failed to answer.');
}

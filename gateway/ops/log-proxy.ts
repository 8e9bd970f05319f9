/** The public transparency log and the receipts, as the daemons hold them. Paths are rebuilt from checked parts, never passed through. */
import type { Context } from 'hono';
import type { Receipt, ReceiptBundle } from '../../daemon/protocol.ts';
import type { Principal } from '../auth/scopes.ts';
import { ApiError, engineUnavailable } from '../errors.ts';
import { limits } from '../limits.ts';
import type { AppEnv, Services } from '../services.ts';

function notFound(): ApiError {
  return new ApiError(404, 'invalid_request_error', 'not_found', 'The log has no such thing.');
}

/** `?daemon=i` names the log where there are several daemons; each has its own. */
async function relay(services: Services, c: Context<AppEnv>, path: string, cache: string): Promise<Response> {
  const text = c.req.query('daemon') ?? '0';
  const client = /^\d{1,4}$/.test(text) ? services.pool.clients[Number(text)] : undefined;
  if (client === undefined) throw notFound();
  const response = await client.send('GET', path, { signal: AbortSignal.timeout(limits.daemonTimeoutMs) });
  const headers = {
    ...c.get('headers'),
    'content-type': response.headers.get('content-type') ?? 'application/octet-stream',
    'cache-control': cache,
  };
  return new Response(response.body, { headers });
}

export function logCheckpoint(services: Services, c: Context<AppEnv>): Promise<Response> {
  return relay(services, c, '/log/checkpoint', 'no-cache');
}

export function logVkey(services: Services, c: Context<AppEnv>): Promise<Response> {
  return relay(services, c, '/log/vkey', 'public, max-age=300');
}

/** c2sp.org/tlog-tiles: tile/<L>/<N>[.p/<W>] and tile/entries/<N>[.p/<W>], N in groups of three digits, all but the last with an x. */
const TILE = /^(entries|[0-9]|[1-5][0-9]|6[0-3])\/(x\d{3}\/){0,6}\d{3}(\.p\/([1-9]|[1-9]\d|1\d\d|2[0-4]\d|25[0-5]))?$/;

export async function logTile(services: Services, c: Context<AppEnv>): Promise<Response> {
  const tile = c.req.path.slice('/log/tile/'.length);
  if (!TILE.test(tile)) throw notFound();
  return relay(services, c, `/log/tile/${tile}`, 'public, max-age=31536000, immutable');
}

const SIZE = /^\d{1,15}$/;

/** `to` may be left out: the tree as it is now. */
export async function logConsistency(services: Services, c: Context<AppEnv>): Promise<Response> {
  const from = c.req.query('from') ?? '';
  const to = c.req.query('to');
  for (const [param, value] of [['from', from] as const, ['to', to ?? '0'] as const]) {
    if (!SIZE.test(value)) {
      throw new ApiError(400, 'invalid_request_error', 'invalid_value', `Invalid '${param}': give a tree size.`, {
        param,
      });
    }
  }
  const query = to === undefined ? `from=${from}` : `from=${from}&to=${to}`;
  return relay(services, c, `/log/consistency?${query}`, to === undefined ? 'no-cache' : 'public, max-age=300');
}

/** Under its id, which names a request, a receipt is for whose request that was, and admins. The log is public, as hashes of who asked what. */
function isFor(principal: Principal, { entry }: ReceiptBundle): boolean {
  return principal.scopes.has('admin') || (JSON.parse(entry) as Receipt).callerHash === principal.callerHash;
}

export async function getReceipt(services: Services, c: Context<AppEnv>): Promise<Response> {
  const id = c.req.param('id') ?? '';
  const missing = new ApiError(
    404,
    'invalid_request_error',
    'receipt_not_found',
    'There is no receipt with this id (or not yet).',
    { param: 'id' },
  );
  if (!/^rcpt_[\w-]{1,255}$/.test(id)) throw missing;
  let unreachable = false;
  for (const client of services.pool.clients) {
    try {
      const bundle = await client.receipt(id);
      if (!isFor(c.get('principal'), bundle)) throw missing;
      return c.json(bundle);
    } catch (error) {
      if (!(error instanceof ApiError) || error === missing) throw error;
      if (error.status !== 404) unreachable = true;
    }
  }
  throw unreachable ? engineUnavailable(limits.retryAfterSeconds) : missing;
}

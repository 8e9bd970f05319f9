/**
 * The gateway as a function of Request: Web-standard APIs only, so the same app runs on Node and Deno. Order of events for a request:
 * id and clock → header limit → route → key and scope → handler (body, model, limits, budget, daemon) → headers, log line, metrics.
 */
import { OpenAPIHono } from '@hono/zod-openapi';
import type { Context, MiddlewareHandler, Next } from 'hono';
import { authenticate } from './auth/authenticate.ts';
import { BudgetLedger } from './auth/budget.ts';
import { KeyStore } from './auth/key-store.ts';
import { RateLimiter } from './auth/rate-limit.ts';
import type { Principal } from './auth/scopes.ts';
import { isLoopback, type MetricsAccess, type Price } from './config.ts';
import { DaemonClient, type Fetch } from './daemons/client.ts';
import { DaemonPool } from './daemons/pool.ts';
import type { Post } from './daemons/post.ts';
import { type DatanetDeps, Datanets } from './datanets/datanets.ts';
import type { Database } from './db/open.ts';
import { ApiError, errorResponse, toApiError } from './errors.ts';
import { AliasRows } from './factory/evaluations/alias-rows.ts';
import { EvaluationRows } from './factory/evaluations/evaluation-rows.ts';
import { Factory, type FactoryDeps } from './factory/factory.ts';
import { askWhenRead } from './http/body.ts';
import { isClientRequestId, randomId, type Sha256Hex, webSha256Hex } from './http/ids.ts';
import { limits } from './limits.ts';
import { writeRecord } from './openai/run.ts';
import { Settler } from './openai/settler.ts';
import { DatabaseProbe } from './ops/database-probe.ts';
import type { HealthSources } from './ops/health.ts';
import { Metrics } from './ops/metrics.ts';
import { Oidc, type OidcOptions } from './people/oidc/oidc.ts';
import { Organizations } from './people/organizations/organizations.ts';
import { People, type PeopleOptions } from './people/people.ts';
import { describe, honoPath, type Route, routesOf } from './routes.ts';
import type { AppEnv, Log, RequestRecord, Services } from './services.ts';

export interface AppDeps {
  db: Database;
  /** No other gateway shares the database: caches may live longer. */
  exclusiveDatabase: boolean;
  /** `post`: a faster way than `fetch` to read streams, where the runtime has one. */
  daemons: { urls: string[]; token: string; fetch: Fetch; post?: Post };
  /** A shorter way for streams than a Response, where the runtime has one; `env` is what it hands to `fetch`. */
  direct?: Services['direct'];
  price: Price;
  /** Where uploaded files are kept, and what training costs. */
  factory: Pick<FactoryDeps, 'storage' | 'trainingMicrosPerMillion' | 'organization' | 'lease'>;
  /** What signs rows of Datanets, and where contributions are kept and read. */
  datanets: DatanetDeps;
  people?: PeopleOptions;
  oidc?: OidcOptions | null;
  log: Log;
  metrics: MetricsAccess;
  version: string;
  supervisor?: () => Promise<unknown>;
  /** Tests shorten it. */
  settlementAbsencesMax?: number;
  now?: () => number;
  sha256Hex?: Sha256Hex;
}

export interface App {
  /** `env`: what the runtime knows of the request besides, handed to `direct`. */
  fetch: (request: Request, env?: unknown) => Response | Promise<Response>;
  services: Services;
  routes: Route[];
  openapi: () => unknown;
}

/** OpenAI's own answers name their API version; ours is compatible with this one. */
const OPENAI_VERSION = '2020-10-01';

export function createApp(deps: AppDeps): App {
  const now = deps.now ?? Date.now;
  const startedAt = now();
  const { urls, ...connection } = deps.daemons;
  const pool = new DaemonPool(
    urls.map((url) => new DaemonClient({ url, ...connection })),
    now,
  );
  const ledger = new BudgetLedger(deps.db.$client, now);
  const sha256Hex = deps.sha256Hex ?? webSha256Hex;
  const keys = new KeyStore(deps.db, { now, cacheMs: deps.exclusiveDatabase ? 60_000 : 5_000, sha256Hex });
  const people = new People({ db: deps.db, keys, log: deps.log, now, sha256Hex }, deps.people ?? {});
  const factory = new Factory({
    ...deps.factory,
    datanetKey: deps.datanets.key.verifier,
    db: deps.db,
    pool,
    keys,
    ledger,
    log: deps.log,
    now,
    currency: deps.price.currency,
  });
  const datanets: Datanets = new Datanets(
    { ...deps.datanets, db: deps.db, exclusive: deps.exclusiveDatabase, log: deps.log, now },
    () => services,
  );
  datanets.versions.onWithdrawn = (...gone) => factory.rowsWithdrawn(...gone);
  const services: Services = {
    keys,
    factory,
    datanets,
    people,
    organizations: new Organizations(deps.db, now),
    oidc: new Oidc({ db: deps.db, users: people.users, now }, deps.oidc ?? null),
    aliases: new AliasRows(deps.db, { now, cacheMs: deps.exclusiveDatabase ? 60_000 : 1_000 }),
    evaluations: new EvaluationRows(deps.db, now),
    limiter: new RateLimiter(now),
    ledger,
    pool,
    settler: new Settler(ledger, pool, deps.log, deps.settlementAbsencesMax ?? limits.settlementAbsencesMax),
    metrics: new Metrics(),
    log: deps.log,
    price: deps.price,
    direct: deps.direct ?? (() => null),
    now,
  };

  const app = new OpenAPIHono<AppEnv>();
  const document = {
    openapi: '3.1.0',
    info: {
      title: 'modelfactory',
      version: deps.version,
      description: 'OpenAI-compatible inference over many LoRA adapters, with receipts.',
    },
  };
  const openapi = () => app.getOpenAPI31Document(document);
  const databaseProbe = new DatabaseProbe(deps.db.$client, deps.exclusiveDatabase);
  const healthSources: HealthSources = {
    version: deps.version,
    startedAt,
    database: () => databaseProbe.check(),
    supervisor: deps.supervisor ?? (() => Promise.resolve(null)),
  };
  const routes = routesOf(services, { health: healthSources, openapi });

  app.use(account(services));
  app.onError((error, c) => refuse(c, error));
  app.notFound((c) => refuse(c, missing(c, routes)));
  for (const route of routes) {
    app.on(route.method.toUpperCase(), honoPath(route), guard(services, route, deps.metrics), route.handler);
  }
  describe(app, routes);
  return { fetch: (request, env) => app.fetch(request, env as object), services, routes, openapi };
}

/** First in, last out: the record, the headers every answer has, the log line. */
function account(services: Services): MiddlewareHandler<AppEnv> {
  return async (c, next) => {
    const given = c.req.header('x-request-id');
    const record: RequestRecord = {
      requestId: isClientRequestId(given) ? given : `req_${randomId()}`,
      method: c.req.method,
      route: '(unknown)',
      startedAt: services.now(),
      status: 0,
    };
    const headers: Record<string, string> = {
      'x-request-id': record.requestId,
      'openai-version': OPENAI_VERSION,
      'x-content-type-options': 'nosniff',
    };
    c.set('record', record);
    c.set('headers', headers);
    services.metrics.begin();
    if (headerBytes(c.req.raw.headers) > limits.headerBytesMax) {
      c.res = refuse(
        c,
        new ApiError(
          431,
          'invalid_request_error',
          'headers_too_large',
          `The request headers are larger than ${limits.headerBytesMax} bytes.`,
        ),
      );
    } else {
      await next();
    }
    // A stream has its headers already, and writes its record when it ends.
    if (record.deferred) return;
    headers['openai-processing-ms'] = String(Math.round(services.now() - record.startedAt));
    for (const name in headers) if (!c.res.headers.has(name)) c.res.headers.set(name, headers[name] as string);
    record.status = c.res.status;
    writeRecord(services, record);
  };
}

function headerBytes(headers: Headers): number {
  let bytes = 0;
  headers.forEach((value, name) => {
    bytes += name.length + value.length + 4;
  });
  return bytes;
}

function guard(services: Services, route: Route, metrics: MetricsAccess): MiddlewareHandler<AppEnv> {
  return async (c, next) => {
    const record = c.get('record');
    record.route = route.path;
    const open = route.access === 'public' || (route.access === 'metrics' && areMetricsOpen(metrics, c));
    if (!open) {
      const principal = await authenticate(services, c, route.access);
      c.set('principal', principal);
      record.keyId = principal.keyId;
      if (route.counted === true) Object.assign(c.get('headers'), services.limiter.count(principal));
    }
    if (route.audit === undefined) return next();
    const principal = c.get('principal') as Principal | undefined;
    // Key, session, user and role, once more when the whole body is there: whoever is shut out meanwhile changes nothing, and
    // handlers that ask who calls after the body find the people of then.
    if (principal !== undefined && route.body !== undefined)
      askWhenRead(c.req.raw, async () => c.set('principal', await services.people.refreshed(principal)));
    await audited(services, route, c, next);
  };
}

/** The act's row in the audit log: before the handler begins, and once it has ended. */
async function audited(services: Services, route: Route, c: Context<AppEnv>, next: Next): Promise<void> {
  const { audit } = services.people;
  const principal = c.get('principal') as Principal | undefined;
  const began = principal?.sessionId == null ? null : { session: principal.sessionId };
  let seq: number | null = null;
  const open = async () => {
    seq ??= await audit.begin({
      action: route.audit as string,
      userId: principal?.userId ?? null,
      keyId: principal?.keyId ?? null,
      object: Object.values(c.req.param())[0] ?? null,
      requestId: c.get('record').requestId,
      address: services.people.addressOf(c),
      detail: began,
    });
  };
  // Anybody can send requests to public routes, so their handlers say when one is worth a row.
  if (route.access === 'public') c.set('openAudit', open);
  else await open();
  try {
    await next();
  } finally {
    if (seq !== null) {
      const note = c.get('audit') ?? {};
      const detail = note.detail === undefined ? undefined : { ...began, ...note.detail };
      await audit.end(seq, c.finalized ? c.res.status : 500, { ...note, detail });
    }
  }
}

/** On loopback only under a name of loopback: a web page whose own name was made to mean this machine gets nothing. */
function areMetricsOpen(metrics: MetricsAccess, c: Context<AppEnv>): boolean {
  if (metrics === 'key' || isForwarded(c)) return false;
  return metrics === 'public' || isLoopback(new URL(c.req.url).hostname);
}

/** Came through a proxy, so the peer is not who is asking. */
function isForwarded(c: Context<AppEnv>): boolean {
  return ['forwarded', 'x-forwarded-for', 'x-real-ip', 'via'].some((name) => c.req.header(name) !== undefined);
}

/** The one place where a failure becomes HTTP. */
function refuse(c: Context<AppEnv>, thrown: unknown): Response {
  const error = toApiError(thrown);
  const record = c.get('record');
  record.code = error.code;
  if (error.cause !== undefined) record.cause = error.cause;
  return errorResponse(error);
}

/** 405 if the path exists under another method, else 404. */
function missing(c: Context<AppEnv>, routes: Route[]): ApiError {
  const allowed = routes
    .filter((route) => patternOf(route).test(c.req.path))
    .map((route) => route.method.toUpperCase());
  if (allowed.length > 0) {
    const message = `This address does not take ${c.req.method.slice(0, 16)}; it takes ${allowed.join(', ')}.`;
    return new ApiError(405, 'invalid_request_error', 'method_not_allowed', message, {
      headers: { allow: allowed.join(', ') },
    });
  }
  return new ApiError(
    404,
    'invalid_request_error',
    'unknown_url',
    'Unknown address. GET /openapi.json lists what there is.',
  );
}

function patternOf(route: Route): RegExp {
  const source = route.path
    .replaceAll(/[.]/g, '\\.')
    .replaceAll('{tile}', '.+')
    .replaceAll(/\{\w+\}/g, '[^/]+');
  return new RegExp(`^${source}$`);
}

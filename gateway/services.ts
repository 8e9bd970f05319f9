/** What the routes work with: made once in createApp, handed to every route. */

import type { BudgetLedger } from './auth/budget.ts';
import type { KeyStore } from './auth/key-store.ts';
import type { RateLimiter } from './auth/rate-limit.ts';
import type { Principal } from './auth/scopes.ts';
import type { Price } from './config.ts';
import type { DaemonPool } from './daemons/pool.ts';
import type { Datanets } from './datanets/datanets.ts';
import type { AliasRows } from './factory/evaluations/alias-rows.ts';
import type { EvaluationRows } from './factory/evaluations/evaluation-rows.ts';
import type { Factory } from './factory/factory.ts';
import type { Settler } from './openai/settler.ts';
import type { DirectStream } from './openai/sse.ts';
import type { Metrics } from './ops/metrics.ts';
import type { AuditNote } from './people/audit.ts';
import type { Oidc } from './people/oidc/oidc.ts';
import type { Organizations } from './people/organizations/organizations.ts';
import type { People } from './people/people.ts';

export interface Log {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

export interface Services {
  keys: KeyStore;
  limiter: RateLimiter;
  ledger: BudgetLedger;
  pool: DaemonPool;
  /** Files and fine-tuning jobs. */
  factory: Factory;
  datanets: Datanets;
  /** Users, sessions, the audit log. */
  people: People;
  organizations: Organizations;
  /** Logging in through an OpenID provider. */
  oidc: Oidc;
  aliases: AliasRows;
  evaluations: EvaluationRows;
  settler: Settler;
  metrics: Metrics;
  log: Log;
  price: Price;
  /** A runtime's own way to stream to the client of a request; null where it has none. */
  direct: (env: unknown) => DirectStream | null;
  /** Milliseconds since 1970. */
  now: () => number;
}

/** What one request tells the log and the metrics; filled along its way, written once at its end. */
export interface RequestRecord {
  requestId: string;
  method: string;
  route: string;
  startedAt: number;
  status: number;
  code?: string | null;
  keyId?: string;
  model?: string;
  operation?: 'chat' | 'text_completion' | 'embeddings';
  stream?: boolean;
  receiptId?: string;
  promptTokens?: number;
  completionTokens?: number;
  costMicros?: number;
  firstTokenMs?: number;
  cause?: unknown;
  /** A stream writes its record itself, when it ends. */
  deferred?: boolean;
}

export type AppEnv = {
  Variables: {
    record: RequestRecord;
    /** Not set on public routes. */
    principal: Principal;
    headers: Record<string, string>;
    /** Set by handlers: what the audit log is to say besides. */
    audit: AuditNote | undefined;
    /** On public routes with `audit`: writes the row. Called before the act, once the request is worth a row. */
    openAudit: (() => Promise<void>) | undefined;
  };
};

/** What a key may do. `admin` may do everything. */
export const SCOPES = ['inference', 'adapters', 'fine_tuning', 'keys', 'metrics', 'admin'] as const;
export type Scope = (typeof SCOPES)[number];

/** What a route asks for: nothing at all, any valid key, or a key with that scope. */
export type Access = 'public' | 'any' | Scope;

export interface Principal {
  keyId: string;
  name: string;
  /** SHA-256 of the key id: all that daemons and the receipt log learn of the caller. */
  callerHash: string;
  scopes: ReadonlySet<string>;
  /** null = all models. */
  models: ReadonlySet<string> | null;
  requestsPerMinute: number;
  tokensPerMinute: number;
  concurrency: number;
  budgetMicros: number | null;
  expiresAt: number | null;
}

export function canAccess(principal: Principal, access: Access): boolean {
  if (access === 'public' || access === 'any') return true;
  return principal.scopes.has('admin') || principal.scopes.has(access);
}

export function canUseModel(principal: Principal, model: string): boolean {
  return principal.models === null || principal.models.has(model);
}

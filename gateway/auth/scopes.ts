/** What a caller may do. Keys carry scopes; a user's role says which of them the user's keys and sessions can have. */
import type { Role } from '../db/people-schema.ts';
import type { Limits } from './limit-fields.ts';

export const SCOPES = [
  'inference',
  'adapters',
  'fine_tuning',
  'keys',
  'metrics',
  /** Browse Datanets, ask for access, accept licences. */
  'datanets',
  /** Put rows and documents into Datanets, and take one's own out again. */
  'contribute',
  /** Create Datanets; review, publish, grant and revoke where one is in charge. */
  'govern',
  /** One's own profile, sessions and password. */
  'account',
  /** All users and organisations. */
  'people',
  'audit',
  /** Everything. */
  'admin',
] as const;
export type Scope = (typeof SCOPES)[number];

/** What a route asks for: nothing at all, any valid caller, or one with that scope. */
export type Access = 'public' | 'any' | Scope;

const CONSUMER: readonly Scope[] = ['inference', 'keys', 'datanets', 'account'];
const CONTRIBUTOR: readonly Scope[] = [...CONSUMER, 'contribute', 'govern'];
const BUILDER: readonly Scope[] = [...CONTRIBUTOR, 'fine_tuning'];

/** The one table of who may do what. Which *objects* somebody may see or change is decided where the objects are. */
export const ROLE_SCOPES: Record<Role, ReadonlySet<Scope>> = {
  consumer: new Set(CONSUMER),
  contributor: new Set(CONTRIBUTOR),
  builder: new Set(BUILDER),
  admin: new Set(SCOPES),
};

export interface Principal {
  /** The key that pays and that limits are counted on; in a session, the user's account key. */
  keyId: string;
  name: string;
  /** null: a key of the operator's, such as the one made at the first start. */
  userId: string | null;
  role: Role | null;
  /** What files, jobs and models belong to: the user, or the operator's key. */
  ownerId: string;
  /** Set when a browser's session spoke, not a key. */
  sessionId: string | null;
  /** SHA-256 of the owner's id: all that daemons and the receipt log learn of the caller. */
  callerHash: string;
  /** What the key was given and the user's role allows. */
  scopes: ReadonlySet<string>;
  /** null = all models. */
  models: ReadonlySet<string> | null;
  requestsPerMinute: number;
  tokensPerMinute: number;
  concurrency: number;
  budgetMicros: number | null;
  /** What holds for all keys and sessions of the user together; null: a key of the operator's. */
  userLimits: Omit<Limits, 'budgetMicros'> | null;
  expiresAt: number | null;
}

export function canAccess(principal: Principal, access: Access): boolean {
  if (access === 'public' || access === 'any') return true;
  return principal.scopes.has('admin') || principal.scopes.has(access);
}

export function canUseModel(principal: Principal, model: string): boolean {
  return principal.models === null || principal.models.has(model);
}

export function isAdmin(principal: Pick<Principal, 'scopes'>): boolean {
  return principal.scopes.has('admin');
}

/** A key's scopes as its user's role leaves them; `user` null: the operator's. */
export function effectiveScopes(scopes: readonly string[], role: Role | null): ReadonlySet<string> {
  if (role === null) return new Set(scopes);
  const most: ReadonlySet<string> = ROLE_SCOPES[role];
  return new Set(scopes.filter((scope) => most.has(scope)));
}

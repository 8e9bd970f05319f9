/** How users, sessions and acts look to clients. Times in seconds since 1970. */
import { z } from '@hono/zod-openapi';
import { viewOfLimits } from '../auth/limit-fields.ts';
import { type AuditRow, ROLES, type SessionRow, type UserRow } from '../db/schema.ts';

const seconds = (milliseconds: number) => Math.floor(milliseconds / 1000);

export const userView = z
  .object({
    id: z.string(),
    object: z.literal('user'),
    email: z.string(),
    name: z.string(),
    role: z.enum(ROLES),
    state: z.enum(['invited', 'active', 'disabled']),
    has_password: z.boolean(),
    created_at: z.number().int(),
    last_login_at: z.number().int().nullable(),
    /** All keys and sessions together; null: no such limit. */
    requests_per_minute: z.number().int().nullable(),
    tokens_per_minute: z.number().int().nullable(),
    concurrency: z.number().int().nullable(),
    budget_micros: z.number().int().nullable(),
    spent_micros: z.number().int(),
    reserved_micros: z.number().int(),
  })
  .openapi('User');

export function viewOfUser(row: UserRow): z.output<typeof userView> {
  return {
    id: row.id,
    object: 'user',
    email: row.email,
    name: row.name,
    role: row.role,
    state: row.state,
    has_password: row.password !== null,
    created_at: seconds(row.createdAt),
    last_login_at: row.lastLoginAt === null ? null : seconds(row.lastLoginAt),
    ...viewOfLimits(row),
    spent_micros: row.spentMicros,
    reserved_micros: row.reservedMicros,
  };
}

export const sessionView = z
  .object({
    id: z.string(),
    object: z.literal('session'),
    method: z.enum(['password', 'oidc']),
    address: z.string().nullable(),
    user_agent: z.string().nullable(),
    current: z.boolean(),
    created_at: z.number().int(),
    last_seen_at: z.number().int(),
    expires_at: z.number().int(),
  })
  .openapi('Session');

export function viewOfSession(row: SessionRow, currentId: string | null): z.output<typeof sessionView> {
  return {
    id: row.id,
    object: 'session',
    method: row.method,
    address: row.address,
    user_agent: row.userAgent,
    current: row.id === currentId,
    created_at: seconds(row.createdAt),
    last_seen_at: seconds(row.lastSeenAt),
    expires_at: seconds(row.expiresAt),
  };
}

export const invitationView = z
  .object({
    object: z.literal('invitation'),
    /** Shown here and never again. */
    token: z.string(),
    expires_at: z.number().int(),
  })
  .openapi('Invitation');

export function viewOfInvitation(made: { token: string; expiresAt: number }): z.output<typeof invitationView> {
  return { object: 'invitation', token: made.token, expires_at: seconds(made.expiresAt) };
}

export const actView = z
  .object({
    id: z.string(),
    object: z.literal('audit.act'),
    at: z.number().int(),
    action: z.string(),
    user_id: z.string().nullable(),
    key_id: z.string().nullable(),
    target: z.string().nullable(),
    request_id: z.string(),
    address: z.string().nullable(),
    detail: z.record(z.string(), z.unknown()).nullable(),
    /** HTTP status of the answer; null: under way, or its end is not known. */
    status: z.number().int().nullable(),
  })
  .openapi('AuditedAct');

export const actId = (seq: number) => `act_${seq}`;

export function viewOfAct(row: AuditRow): z.output<typeof actView> {
  return {
    id: actId(row.seq),
    object: 'audit.act',
    at: seconds(row.at),
    action: row.action,
    user_id: row.userId,
    key_id: row.keyId,
    target: row.object,
    request_id: row.requestId,
    address: row.address,
    detail: row.detail,
    status: row.status,
  };
}

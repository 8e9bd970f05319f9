/** What a request tells of the browser that sent it: its address, its session cookie, and whether the request is of our own pages. */
import type { Context } from 'hono';
import { ApiError } from '../errors.ts';
import type { AppEnv } from '../services.ts';

export interface Client {
  /** null where the runtime does not know it. */
  address: string | null;
  userAgent: string | null;
  /** The session cookie that came along, whatever its worth. */
  cookie: string | null;
  /** The browser reaches us over HTTPS, so cookies are for HTTPS alone. */
  secure: boolean;
}

const NAME = 'mf_session';
/** Browsers take a cookie of this prefix from HTTPS, for the whole host and for no other host only. */
const SECURE_NAME = `__Host-${NAME}`;
const USER_AGENT_CHARACTERS_MAX = 256;

/** How browsers reach the gateway. */
export interface Front {
  /** Null: where requests say. */
  publicUrl: string | null;
  /** A proxy of ours writes the X-Forwarded headers; without one they are the client's own word. */
  trustProxy: boolean;
}

export function isSecure(c: Context<AppEnv>, { publicUrl, trustProxy }: Front): boolean {
  if (publicUrl !== null) return publicUrl.startsWith('https:');
  // The last word is our proxy's.
  const forwarded = trustProxy ? c.req.header('x-forwarded-proto')?.split(',').at(-1)?.trim().toLowerCase() : undefined;
  if (forwarded === 'https' || forwarded === 'http') return forwarded === 'https';
  return c.req.url.startsWith('https:');
}

/** The value of our cookie; of several with the name, the first, as browsers send the most specific one first. */
export function sessionCookieOf(header: string | undefined, secure: boolean): string | null {
  if (header === undefined) return null;
  const name = `${secure ? SECURE_NAME : NAME}=`;
  for (const part of header.split(';')) {
    const pair = part.trim();
    if (pair.startsWith(name)) return pair.slice(name.length, name.length + 64);
  }
  return null;
}

export function setCookie(value: string, secure: boolean, lifeMs: number): string {
  const life = `Max-Age=${Math.floor(lifeMs / 1000)}`;
  const shared = `Path=/; ${life}; HttpOnly; SameSite=Lax`;
  return secure ? `${SECURE_NAME}=${value}; ${shared}; Secure` : `${NAME}=${value}; ${shared}`;
}

/** Makes the browser drop the cookie. */
export function clearCookie(secure: boolean): string {
  return setCookie('', secure, 0);
}

export function userAgentOf(header: string | undefined): string | null {
  if (header === undefined || header === '') return null;
  // Shown in lists of sessions: nothing that could change how a line reads.
  return header.replaceAll(/[\p{C}]/gu, '').slice(0, USER_AGENT_CHARACTERS_MAX);
}

/** @throws ApiError 403 `csrf` for what another site made the browser send. Programs send neither header and pass. */
export function checkOrigin(c: Context<AppEnv>, publicUrl: string | null): void {
  const site = c.req.header('sec-fetch-site');
  const origin = c.req.header('origin');
  const foreign = site === 'cross-site' || (origin !== undefined && !isOwn(origin, c.req.url, publicUrl));
  if (foreign) throw forged('This request comes from a page of another site.');
}

function isOwn(origin: string, url: string, publicUrl: string | null): boolean {
  if (!URL.canParse(origin)) return false;
  const given = new URL(origin);
  // The scheme is not compared with our own: a proxy that ends TLS makes https look like http.
  return given.host === new URL(url).host || (publicUrl !== null && given.origin === new URL(publicUrl).origin);
}

export function forged(message: string): ApiError {
  return new ApiError(403, 'permission_error', 'csrf', message);
}

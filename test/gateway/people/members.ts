/** People as tests meet them: invited, with a password, logged in by a browser that keeps its cookie. */
import { expect } from 'vitest';
import type { Role } from '../../../gateway/db/schema.ts';
import type { Rig } from '../rig.ts';

export const PASSWORD = 'violet kettle under seven';

export interface Browser {
  /** What the browser would send as cookie. */
  cookie: string;
  csrf: string;
  send(method: string, path: string, body?: unknown, headers?: Record<string, string>): Promise<Response>;
}

export function browser(rig: Rig, options: { address?: string; origin?: string } = {}): Browser {
  const origin = options.origin ?? 'http://gateway.test';
  const made: Browser = {
    cookie: '',
    csrf: '',
    async send(method, path, body, headers = {}) {
      const unsafe = method !== 'GET';
      const response = await rig.app.fetch(
        new Request(`${origin}${path}`, {
          method,
          headers: {
            ...(made.cookie === '' ? {} : { cookie: made.cookie }),
            ...(unsafe && made.csrf !== '' ? { 'x-csrf-token': made.csrf } : {}),
            ...(unsafe ? { origin } : {}),
            ...(body === undefined ? {} : { 'content-type': 'application/json' }),
            ...headers,
          },
          ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        }),
        { address: options.address ?? '192.0.2.1' },
      );
      const set = response.headers.get('set-cookie');
      if (set !== null) made.cookie = set.includes('Max-Age=0') ? '' : (set.split(';')[0] as string);
      return response;
    },
  };
  return made;
}

export async function logIn(page: Browser, email: string, password = PASSWORD): Promise<Response> {
  const response = await page.send('POST', '/api/session', { email, password });
  if (response.status === 201) page.csrf = ((await response.clone().json()) as { csrf_token: string }).csrf_token;
  return response;
}

let made = 0;

/** Invited by the operator, password set by the link. */
export async function member(
  rig: Rig,
  options: { role?: Role; email?: string; password?: string } = {},
): Promise<{ id: string; email: string }> {
  made += 1;
  const email = options.email ?? `member${made}@members.test`;
  const role = options.role ?? 'builder';
  const invited = await rig.call('POST', '/api/users', { email, name: `Member ${made}`, role });
  expect(invited.status).toBe(201);
  const { id, invitation } = (await invited.json()) as { id: string; invitation: { token: string } };
  const accepted = await browser(rig).send('POST', '/api/invitations/accept', {
    token: invitation.token,
    password: options.password ?? PASSWORD,
  });
  expect(accepted.status).toBe(200);
  return { id, email };
}

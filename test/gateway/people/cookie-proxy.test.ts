/** Session cookies are for HTTPS alone wherever browsers speak HTTPS, and work on plain http://localhost. */
import { expect, test } from 'vitest';
import { type Rig, startRig } from '../rig.ts';
import { browser, logIn, member } from './members.ts';

async function cookieOf(rig: Rig, headers: Record<string, string> = {}): Promise<string> {
  const { email } = await member(rig);
  const page = browser(rig);
  const response = await page.send('POST', '/api/session', { email, password: 'violet kettle under seven' }, headers);
  expect(response.status).toBe(201);
  return response.headers.get('set-cookie') ?? '';
}
const SECURE = /^__Host-mf_session=[^;]+; Path=\/; Max-Age=\d+; HttpOnly; SameSite=Lax; Secure$/;
const PLAIN = /^mf_session=[^;]+; Path=\/; Max-Age=\d+; HttpOnly; SameSite=Lax$/;

test('behind a trusted proxy the last X-Forwarded-Proto says which; without one it is the client’s own word', async () => {
  const trusting = await startRig({ people: { trustProxy: true } });
  expect(await cookieOf(trusting, { 'x-forwarded-proto': 'https' })).toMatch(SECURE);
  expect(await cookieOf(trusting, { 'x-forwarded-proto': 'http, https' })).toMatch(SECURE);
  expect(await cookieOf(trusting, { 'x-forwarded-proto': 'https, http' })).toMatch(PLAIN);
  expect(await cookieOf(trusting)).toMatch(PLAIN);
  // The cookie that was set is the one that is read.
  const { email } = await member(trusting);
  const page = browser(trusting);
  const proto = { 'x-forwarded-proto': 'https' };
  const send = page.send;
  page.send = (method, path, body, headers) => send(method, path, body, { ...proto, ...headers });
  await logIn(page, email);
  expect((await page.send('GET', '/api/session')).status).toBe(200);
  await trusting.close();
  const alone = await startRig();
  expect(await cookieOf(alone, { 'x-forwarded-proto': 'https' })).toMatch(PLAIN);
  await alone.close();
});

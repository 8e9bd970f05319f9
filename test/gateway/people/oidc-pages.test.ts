/** What a browser sees of OpenID besides the way in: a page where it failed, and the way out at the provider. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { errorOf, type Rig, startRig } from '../rig.ts';
import { Browser, PUBLIC, type RealProvider, settingsOf, startProvider } from './oidc-rig.ts';

let provider: RealProvider;
let rig: Rig;

beforeAll(async () => {
  provider = await startProvider();
  rig = await startRig({
    people: { publicUrl: PUBLIC },
    oidc: { settings: settingsOf(provider.issuer, { role: 'consumer' }) },
  });
});
afterAll(async () => {
  await rig.close();
  await provider.close();
});

const BROWSER = 'text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8';
const HOSTILE = '<script>alert(1)</script>';

test('a failed log-in is a page for a person: why, a way back, nothing that runs, nothing secret', async () => {
  const browser = new Browser(rig.app);
  const back = await browser.authenticate(await browser.begin(), 'abort');
  const state = new URL(back).searchParams.get('state') as string;
  const attempt = browser.jar().get('__Host-mf_oidc') as string;
  const response = await browser.request(back, { headers: { accept: BROWSER, 'x-request-id': 'req-of-mine' } });
  expect(response.status).toBe(400);
  expect(response.headers.get('content-type')).toBe('text/html; charset=utf-8');
  expect(response.headers.get('cache-control')).toBe('no-store');
  expect(response.headers.get('x-content-type-options')).toBe('nosniff');
  const policy = response.headers.get('content-security-policy') ?? '';
  expect(policy).toContain("default-src 'none'");
  expect(policy).toContain("frame-ancestors 'none'");
  expect(policy).not.toContain('unsafe');
  const html = await response.text();
  expect(html).toContain('access_denied');
  expect(html).toContain('href="/api/session/oidc"');
  expect(html).toContain('req-of-mine');
  expect(html).not.toContain('<script');
  for (const secret of [state, attempt]) expect(html).not.toContain(secret);
  // The attempt is over, and nobody is logged in.
  expect(browser.jar().has('__Host-mf_oidc')).toBe(false);
  expect(browser.session).toBeUndefined();
});

test('what an attacker puts into the address stands nowhere in the page', async () => {
  const browser = new Browser(rig.app);
  for (const query of [
    `error=${encodeURIComponent(HOSTILE)}&state=x`,
    `error=access_denied&error_description=${encodeURIComponent(HOSTILE)}`,
    `state=${encodeURIComponent(HOSTILE)}`,
    `iss=${encodeURIComponent(HOSTILE)}`,
    `code=${'A'.repeat(5_000)}`,
  ]) {
    const response = await browser.request(`${PUBLIC}/api/session/oidc/callback?${query}`, {
      headers: { accept: BROWSER },
    });
    expect(response.status).toBe(400);
    const html = await response.text();
    expect(html).toContain('You are not logged in');
    expect(html).not.toContain('<script');
    expect(html).not.toContain('alert(1)');
  }
});

test.each([undefined, 'application/json', '*/*', 'text/html;q=0, application/json'])(
  'whoever accepts %s gets JSON',
  async (accept) => {
    const response = await new Browser(rig.app).request(`${PUBLIC}/api/session/oidc/callback?state=x`, {
      headers: accept === undefined ? {} : { accept },
    });
    expect([response.status, (await errorOf(response)).code]).toEqual([400, 'oidc_state']);
  },
);

test('logging out says where to log out at the provider, and the provider takes it from there', async () => {
  provider.people.set('lea', { email: 'lea@pages.test', email_verified: true, name: 'Lea' });
  const browser = new Browser(rig.app);
  expect((await browser.logIn('lea')).status).toBe(303);
  const ended = await browser.send('DELETE', '/api/session');
  const { provider_logout_url: url } = (await ended.json()) as { provider_logout_url: string };
  expect(new URL(url).origin).toBe(provider.issuer);
  expect(Object.fromEntries(new URL(url).searchParams)).toEqual({
    client_id: 'modelfactory',
    post_logout_redirect_uri: `${PUBLIC}/`,
  });
  expect(browser.session).toBeUndefined();
  const form = await browser.request(url);
  expect(form.status).toBe(200);
  const page = await form.text();
  const submitted = await browser.request(/action="([^"]+)"/.exec(page)?.[1] as string, {
    method: 'POST',
    headers: { 'content-type': 'application/x-www-form-urlencoded' },
    body: new URLSearchParams({
      xsrf: /name="xsrf" value="([^"]+)"/.exec(page)?.[1] as string,
      logout: 'yes',
    }).toString(),
  });
  expect(submitted.headers.get('location')).toBe(`${PUBLIC}/`);
});

test('a session of a password has nothing to log out of there', async () => {
  const session = await (await rig.user()).session();
  const cookie = session.cookie.replace(/^mf_session/, '__Host-mf_session');
  const ended = await session.call('DELETE', '/api/session', undefined, { cookie });
  expect(await ended.json()).toMatchObject({ ended: true, provider_logout_url: null });
});

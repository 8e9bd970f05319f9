/** Settings of the OpenID provider: what cannot be safe is refused at the start, in a sentence. */
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { ConfigError, readConfig } from '../../../gateway/config.ts';
import { cookieKey } from '../../../gateway/people/oidc/cookie-key.ts';
import { exactEmail } from '../../../gateway/people/oidc/identities.ts';
import { isLocalPath } from '../../../gateway/people/oidc/return-to.ts';
import { isTrustedUrl } from '../../../gateway/people/oidc/settings.ts';

const ENV = {
  MODELFACTORY_DAEMON_TOKEN: 'x'.repeat(32),
  MODELFACTORY_OIDC_ISSUER: 'https://id.example.org/realms/one',
  MODELFACTORY_OIDC_CLIENT_ID: 'factory',
  MODELFACTORY_OIDC_CLIENT_SECRET: 'secret',
  MODELFACTORY_PUBLIC_URL: 'https://models.example.org/',
};
const oidcOf = (change: Record<string, string>) => readConfig({ ...ENV, ...change }).oidc;

describe('settings', () => {
  test('what is set, and what is not', () => {
    expect(readConfig({ MODELFACTORY_DAEMON_TOKEN: 'x'.repeat(32) }).oidc).toBeNull();
    expect(oidcOf({})).toEqual({
      issuer: 'https://id.example.org/realms/one',
      clientId: 'factory',
      clientSecret: 'secret',
      role: null,
      algorithms: ['RS256', 'PS256', 'ES256', 'EdDSA'],
      publicUrl: 'https://models.example.org',
    });
    expect(oidcOf({ MODELFACTORY_OIDC_ROLE: 'contributor', MODELFACTORY_OIDC_CLIENT_SECRET: '' })).toMatchObject({
      role: 'contributor',
      clientSecret: null,
    });
    expect(oidcOf({ MODELFACTORY_OIDC_ALGORITHMS: 'ES384, Ed25519' })?.algorithms).toEqual(['ES384', 'Ed25519']);
    expect(oidcOf({ MODELFACTORY_OIDC_ISSUER: 'http://127.0.0.1:8080' })?.issuer).toBe('http://127.0.0.1:8080');
  });

  test.each([
    [{ MODELFACTORY_OIDC_ISSUER: 'http://id.example.org' }, /ISSUER must be an https URL/],
    [{ MODELFACTORY_OIDC_ISSUER: 'id.example.org' }, /ISSUER must be an https URL/],
    [{ MODELFACTORY_OIDC_ISSUER: 'https://id.example.org/?a=b' }, /ISSUER must be an https URL/],
    [{ MODELFACTORY_OIDC_ISSUER: 'https://user:pass@id.example.org' }, /ISSUER must be an https URL/],
    [{ MODELFACTORY_OIDC_CLIENT_ID: '' }, /CLIENT_ID is missing/],
    [{ MODELFACTORY_PUBLIC_URL: '' }, /PUBLIC_URL is missing/],
    [{ MODELFACTORY_PUBLIC_URL: 'http://models.example.org' }, /PUBLIC_URL must be https/],
    [{ MODELFACTORY_PUBLIC_URL: 'https://models.example.org/app' }, /PUBLIC_URL must be an origin/],
    [{ MODELFACTORY_OIDC_ROLE: 'admin' }, /ROLE must be builder, contributor, consumer or unset/],
    [{ MODELFACTORY_OIDC_ROLE: 'owner' }, /ROLE must be/],
    [{ MODELFACTORY_OIDC_ALGORITHMS: 'RS256,HS256' }, /ALGORITHMS holds "HS256"/],
    [{ MODELFACTORY_OIDC_ALGORITHMS: 'none' }, /ALGORITHMS holds "none"/],
  ])('%j is refused', (change, message) => {
    expect(() => oidcOf(change)).toThrow(ConfigError);
    expect(() => oidcOf(change)).toThrow(message);
  });
});

test.each([
  ['https://id.example.org', true],
  ['http://localhost:3000/x', true],
  ['http://127.0.0.1', true],
  ['http://[::1]:80', true],
  ['http://127.1', true],
  ['http://id.example.org', false],
  ['http://127.0.0.1.evil.test', false],
  ['http://localhost.evil.test', false],
  ['ftp://127.0.0.1', false],
  ['https://a:b@id.example.org', false],
  ['https://id.example.org/#x', false],
  [`https://id.example.org/${'x'.repeat(2048)}`, false],
])('%s is trusted: %s', (url, expected) => expect(isTrustedUrl(url)).toBe(expected));

test('whatever passes for a local path leads a browser to a page of ours', () => {
  const part = fc.constantFrom(
    '/',
    '\\',
    '.',
    '..',
    '//',
    '%2f',
    '%5c',
    '@',
    ':',
    'evil.test',
    'http:',
    '\t',
    '\n',
    ' ',
    '?',
    '#',
    'a',
  );
  fc.assert(
    fc.property(
      fc.oneof(
        fc.array(part, { maxLength: 8 }).map((parts) => `/${parts.join('')}`),
        fc.webUrl(),
        fc.string(),
      ),
      (text) => {
        if (!isLocalPath(text)) return;
        for (const base of ['https://models.test/api/session/oidc/callback', 'http://127.0.0.1:8787/'])
          expect(new URL(text, base).origin).toBe(new URL(base).origin);
        // Also after a server in between has written the path anew.
        const { pathname } = new URL(text, 'https://models.test');
        expect(new URL(pathname, 'https://models.test').origin).toBe('https://models.test');
      },
    ),
    { numRuns: 5000 },
  );
});

test('an address counts only as it is stored, but for ASCII capitals', () => {
  expect(exactEmail('Ada@Example.ORG')).toBe('ada@example.org');
  expect(exactEmail('jürgen@example.org')).toBe('jürgen@example.org');
  for (const other of [
    null,
    '',
    'ada',
    'ａda@example.org',
    'ada@exämple.org',
    ' ada@example.org',
    '\u212a@example.org',
  ])
    expect(exactEmail(other), String(other)).toBeNull();
});

describe('the key of log-ins under way', () => {
  test('is made once, for its user alone, whole or not at all', () => {
    const folder = mkdtempSync(join(tmpdir(), 'mf-oidc-key-'));
    try {
      const path = join(folder, 'keys', 'oidc.key');
      const key = cookieKey(path);
      expect(key).toHaveLength(32);
      expect(cookieKey(path)).toEqual(key);
      expect(statSync(path).mode & 0o777).toBe(0o600);
      expect(cookieKey(join(folder, 'other.key'))).not.toEqual(key);
      writeFileSync(path, 'short');
      expect(() => cookieKey(path)).toThrow(/not a key of 32 bytes/);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

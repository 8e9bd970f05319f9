/** E-mail addresses: what is one account, and what is none. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { emailOf } from '../../../gateway/people/email.ts';

test('forms that read the same are the same address', () => {
  for (const same of [
    'anna@example.org',
    'ANNA@Example.ORG',
    '  anna@example.org ',
    'ａｎｎａ＠example.org',
    'anna@ｅｘａｍｐｌｅ.org',
    'anna@example。org',
  ])
    expect([same, emailOf(same)]).toEqual([same, 'anna@example.org']);
  expect(emailOf('zoe\u0308@example.org')).toBe(emailOf('zo\u00eb@example.org'));
  expect(emailOf('ﬁona@example.org')).toBe('fiona@example.org');
  expect(emailOf('a@Bücher.example')).toBe('a@xn--bcher-kva.example');
  expect(emailOf('a@xn--bcher-kva.example')).toBe('a@xn--bcher-kva.example');
});

test.each([
  ['nothing before the @', '@example.org'],
  ['nothing behind it', 'anna@'],
  ['no @', 'anna.example.org'],
  ['two', 'anna@evil@example.org'],
  ['a control character', 'an\u0000na@example.org'],
  ['a line break', 'anna@example.org\r\nBcc: x@y.z'],
  ['a zero-width space', 'an\u200bna@example.org'],
  ['a change of direction', 'an\u202ena@example.org'],
  ['a soft hyphen', 'an\u00adna@example.org'],
  ['half a surrogate pair', 'an\ud800na@example.org'],
  ['a variation selector', 'anna\ufe0f@example.org'],
  ['a space inside', 'an na@example.org'],
  ['a full-width space inside', 'an\u3000na@example.org'],
  ['quotes', '"anna"@example.org'],
  ['a comment', 'anna(x)@example.org'],
  ['an address in brackets', 'anna@[127.0.0.1]'],
  ['two dots', 'an..na@example.org'],
  ['an empty label', 'anna@example..org'],
  ['a label with a hyphen in front', 'anna@-example.org'],
  ['a path behind', 'anna@example.org/x'],
  ['a port behind', 'anna@example.org:80'],
  ['a query behind', 'anna@example.org?x'],
  ['a fragment behind', 'anna@example.org#x'],
  ['an escape', 'anna@example%2eorg'],
  ['a full-width slash behind', 'anna@example.org／x'],
  ['a tab in the domain', 'anna@exam\tple.org'],
  ['a local part of 65', `${'a'.repeat(65)}@example.org`],
  ['more than 254', `a@${'b.'.repeat(130)}org`],
])('%s is no address', (_, text) => {
  expect(emailOf(text)).toBeNull();
});

test('the stored form is its own stored form, has nothing unseen in it, and one @', () => {
  const part = fc.string({ unit: 'grapheme', minLength: 1, maxLength: 20 });
  let taken = 0;
  fc.assert(
    fc.property(part, fc.constantFrom('example.org', 'Bücher.example', 'ＥＸ.org', 'ß.example'), (local, domain) => {
      const form = emailOf(`${local}@${domain}`);
      if (form === null) return;
      taken += 1;
      expect(emailOf(form)).toBe(form);
      expect(form).not.toMatch(/[\p{C}\p{Z}]/u);
      expect(form.split('@').length).toBe(2);
    }),
    { numRuns: 2000 },
  );
  expect(taken).toBeGreaterThan(200);
});

/** Passwords: what is kept of them, what is refused, and how many are looked at at the same time. */
import { expect, test } from 'vitest';
import { limits } from '../../../gateway/limits.ts';
import { passwordProblem } from '../../../gateway/people/password-rules.ts';
import { Passwords } from '../../../gateway/people/passwords.ts';

const CHEAP = { N: 16, r: 1, p: 1 };
const GOOD = 'violet kettle under seven';

test('a password verifies, another does not, and nothing of it is in what is kept', async () => {
  const passwords = new Passwords(CHEAP);
  const stored = await passwords.hash(GOOD);
  expect(stored).toMatch(/^scrypt\$16\$1\$1\$[\w-]{22}\$[\w-]{43}$/);
  expect(await passwords.verify(GOOD, stored)).toBe(true);
  expect(await passwords.verify(`${GOOD} `, stored)).toBe(false);
  expect(await passwords.verify('', stored)).toBe(false);
  expect(await passwords.hash(GOOD)).not.toBe(stored);
});

test('by default a hash takes 128 MB', async () => {
  expect(await new Passwords().hash(GOOD)).toMatch(/^scrypt\$131072\$8\$1\$/);
});

test('letters that are written in two ways are one password', async () => {
  const passwords = new Passwords(CHEAP);
  const stored = await passwords.hash('zoe\u0308 likes purple tea');
  expect(await passwords.verify('zo\u00eb likes purple tea', stored)).toBe(true);
});

test('passwords of another cost still verify, and are known to be outdated', async () => {
  const old = new Passwords(CHEAP);
  const stored = await old.hash(GOOD);
  const today = new Passwords({ N: 32, r: 2, p: 1 });
  expect(await today.verify(GOOD, stored)).toBe(true);
  expect([old.isOutdated(stored), today.isOutdated(stored)]).toEqual([false, true]);
});

test.each([
  'scrypt$16$1$1$AAAA$',
  'scrypt$16$1$1$$',
  'scrypt$1099511627776$8$1$AAAA$AAAA',
  'scrypt$0$1$1$AAAA$AAAA',
  'scrypt$16.5$1$1$AAAA$AAAA',
  'bcrypt$16$1$1$AAAA$AAAA',
  '',
])('a stored form that is broken lets nobody in: %s', async (stored) => {
  const passwords = new Passwords(CHEAP);
  expect(await passwords.verify(GOOD, stored)).toBe(false);
  expect(await passwords.verify('', stored)).toBe(false);
});

test('few are computed at once, a bounded number waits, and the rest is told to come back', async () => {
  const passwords = new Passwords({ N: 2 ** 12, r: 8, p: 1 });
  const outcomes = await Promise.allSettled(
    Array.from({ length: limits.passwordsWaitingMax + 20 }, () => passwords.verify(GOOD, null)),
  );
  const refused = outcomes.filter(({ status }) => status === 'rejected') as PromiseRejectedResult[];
  expect(refused.length).toBe(20);
  expect(refused[0]?.reason).toMatchObject({ status: 503, code: 'overloaded' });
  expect(refused[0]?.reason.headers['retry-after']).toBeDefined();
  expect(await passwords.verify(GOOD, null)).toBe(false);
});

test.each([
  ['eleven characters', 'abcdefgh1jk'],
  ['eleven emoji', '🦊🐸🐧🦉🐝🦋🐌🐞🐢🐙🦀'],
  ['257 characters', `${'violet kettle '.repeat(19)}`.slice(0, 257)],
  ['one that grows beyond 256 when it is normalised', '\ufdfa'.repeat(20)],
  ['the address', 'anna.smith@example.org!!'],
  ['its first part', 'xxANNA.SMITH-2026'],
  ['a word with digits', 'Password12345!'],
  ['a word with digits in between', 'pass12word34567'],
  ['a keyboard row', 'qwertyuiopasdfgh'],
  ['a keyboard row backwards', 'poiuytrewq09876'],
  ['counting', '1234567890123'],
  ['counting down', '9876543210987'],
  ['one letter', 'aaaaaaaaaaaaaaaa'],
  ['three letters again and again', 'abcabcabcabcabc'],
  ['full-width letters of a common word', 'ｐａｓｓｗｏｒｄ123456'],
  ['this program', 'modelfactory2026'],
  ['a control character', 'violet\u0007kettle under'],
])('refused: %s', (_, password) => {
  expect(passwordProblem(password, 'anna.smith@example.org')).not.toBeNull();
});

test.each([
  GOOD,
  'Tr0ub4dor&3xyz',
  'пароль из четырёх слов',
  '長い秘密の言葉をここに書きました',
  'x7Kq9-vTz2-mWp4',
  'i love password managers',
])('taken: %s', (password) => {
  expect(passwordProblem(password, 'al@example.org')).toBeNull();
});

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { iban, luhn, remainder, verhoeff } from '../../../../gateway/datanets/validation/checksums.ts';
import { PERSONAL_DATA_RULES, validateRow } from '../../../../gateway/datanets/validation/validate.ts';

const verdictOf = (text: string) =>
  validateRow({ kind: 'completion', prompt: 'Tell me something.', completion: text }, { languages: [] });
const personalIn = (text: string) =>
  verdictOf(text)
    .reasons.map((reason) => reason.rule)
    .filter((rule) => (PERSONAL_DATA_RULES as readonly string[]).includes(rule) || rule === 'secret');

/** Digits that make the number valid, by trying. */
function completed(start: string, length: number, isValid: (digits: string) => boolean): string {
  for (let check = 0; check < 10 ** length; check += 1) {
    const whole = start + String(check).padStart(length, '0');
    if (isValid(whole)) return whole;
  }
  throw new Error('no check digits fit');
}

describe('personal data is found', () => {
  test.each<[string, string]>([
    ['email_address', 'Write to anna.berg@posteo.de about it.'],
    ['email_address', 'mailto:j.o-brien+lists@cs.example-college.ac.uk'],
    ['email_address', 'пишите на иван.петров@почта.рф сейчас'],
    ['phone_number', 'Ring +49 170 2839475 in the evening.'],
    ['phone_number', 'My number: +1 (415) 293-8847.'],
    ['phone_number', 'Call (415) 293-8847 now.'],
    ['phone_number', 'Phone 415.293.8847'],
    ['phone_number', 'Tel.: 030 2938 8471'],
    ['phone_number', 'Tél. 06 12 83 47 59'],
    ['phone_number', 'Mobile: 07911 283 947'],
    ['iban', 'Please pay to DE89 3704 0044 0532 0130 00 by Friday.'],
    ['iban', 'FR1420041010050500013M02606'],
    [
      'card_number',
      `The card is 4539 1488 ${completed('45391488', 8, luhn).slice(8, 12)} ${completed('45391488', 8, luhn).slice(12)}.`,
    ],
    ['national_id', 'SSN 536-22-8471'],
    ['national_id', 'DNI 48273615L o no'],
    ['national_id', 'CPF 529.982.247-25'],
    ['national_id', 'codice fiscale RSSMRA85T10A562S'],
    ['national_id', '身份证 11010519491231002X'],
    ['national_id', 'BSN: 111222333'],
    ['national_id', 'My National Insurance number is JG 12 34 58 C.'],
    ['ip_address', 'It came from 84.112.37.201 last night.'],
    ['ip_address', 'From 2a02:8108:8640:1d00:4c5e:9a1f:77b2:13aa it came.'],
    ['street_address', 'He lives at 221 Maple Street, Springfield, IL 62704.'],
    ['street_address', 'Wohnhaft in der Lindenstraße 14, 10969 Berlin'],
    ['secret', '-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk'],
    ['secret', 'export AWS_KEY=AKIAQ7RZ2MDK4WXLT3PB'],
    ['secret', `token ghp_${'a8Zk29QpLm4Tx71VbNc6RyEw3Ds50JfGhUoI'}`],
    [
      'secret',
      `Bearer ${Buffer.from('{"alg":"HS256","typ":"JWT"}').toString('base64url')}.${Buffer.from('{"sub":"12345"}').toString('base64url')}.dBjftJeZ4CVPmB92K27uhbUJU1p1rwW1gFWFOEjXk`,
    ],
    ['secret', 'postgres://app:hT7kq2Vz9@db.internal/main'],
    ['secret', 'api_key = "k8Jd02mQzX71bLw9TtRv"'],
  ])('%s: %s', (rule, text) => {
    expect(personalIn(text)).toContain(rule);
  });

  test('and never repeated in the reason', () => {
    const secrets = [
      'anna.berg@posteo.de',
      '+49 170 2839475',
      'DE89370400440532013000',
      '536-22-8471',
      'AKIAQ7RZ2MDK4WXLT3PB',
      '84.112.37.201',
    ];
    for (const secret of secrets) {
      const { reasons } = verdictOf(`This is it: ${secret} and no other.`);
      expect(reasons.length).toBeGreaterThan(0);
      const said = reasons.map((reason) => reason.message).join(' ');
      for (let at = 0; at + 4 <= secret.length; at += 1) {
        const part = secret.slice(at, at + 4);
        if (/[\p{L}\p{N}]{3}/u.test(part)) expect(said).not.toContain(part);
      }
    }
  });
});

describe('what only looks like it is not', () => {
  test.each([
    'Contact support@example.com or user@domain.com for help.',
    'Use the file logo@2x.png and the package @angular/core@17.3.0, or git@github.com:torvalds/linux.git.',
    'Follow @somebody on the network; the price is 5@10.',
    'The film says 555-0123, (212) 555-0187 and +1 212 555 0100.',
    'Pi is 3.14159265358979323846, e is 2.718281828459045.',
    'In 2019-03-12 10:45:33 the value was 1234567890 (ISBN 978-3-16-148410-0).',
    'The order 4556-1234-5678-9012 and article 4012888888881881 in the shop.',
    'Call me Ishmael. In 1851 there were 135 chapters and 209117 words.',
    'The ratio is 0.123 456 789 and the sum 100 000 000 000.',
    'Use 192.168.1.17, 10.0.0.1, 127.0.0.1, 8.8.8.8, 203.0.113.7 or version 21.14.35.1.',
    'See section 4.11.2.3 and std::vector<int>::iterator at 12:34:56; also fe80::1 and 2001:db8::7.',
    'She lives at 5 Main Street.',
    'The phone has 128 GB, 8 cores and a 6.1 inch screen; it costs 1299.00.',
    'Population 1 403 500 365 against 1 380 004 385 in 2021.',
    'GB29 is not one, DE00 0000 0000 0000 0000 00 neither.',
    'The key is your-api-key-goes-here; password = "changeme123456".',
    'AKIAIOSFODNN7EXAMPLE is in every manual; sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx too.',
    'x = -12345678 + 98765432 * 11111111',
    'Take the numbers 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 and add them: 78.',
    'SSN 123-45-6789 stands for it in examples; call 1-800-555-0199.',
    'git commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08',
    'UUID 123e4567-e89b-12d3-a456-426614174000 and MAC 00:1B:44:11:3A:B7',
  ])('%s', (text) => {
    expect(personalIn(text)).toEqual([]);
  });

  test('random numbers are hardly ever taken for anybody’s', () => {
    let taken = 0;
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: 99_999_999 }), { minLength: 5, maxLength: 12 }), (list) => {
        if (personalIn(`The results were ${list.join(', ')} in all.`).length > 0) taken += 1;
      }),
      { numRuns: 1000, seed: 5 },
    );
    expect(taken).toBeLessThanOrEqual(2);
  });
});

describe('check digits', () => {
  const digits = (length: number) =>
    fc.array(fc.integer({ min: 0, max: 9 }), { minLength: length, maxLength: length }).map((list) => list.join(''));

  test('Luhn and Verhoeff notice any one wrong digit', () => {
    for (const [length, check] of [
      [15, luhn],
      [11, verhoeff],
    ] as const)
      fc.assert(
        fc.property(digits(length), fc.nat({ max: length }), fc.integer({ min: 1, max: 9 }), (start, place, shift) => {
          const valid = completed(start, 1, check);
          const wrong = `${valid.slice(0, place)}${(Number(valid[place]) + shift) % 10}${valid.slice(place + 1)}`;
          expect(check(valid)).toBe(true);
          expect(check(wrong)).toBe(false);
        }),
      );
  });

  test('an IBAN is as long as its country’s and 1 modulo 97', () => {
    expect(iban('DE89370400440532013000')).toBe(true);
    expect(iban('GB82WEST12345698765432')).toBe(true);
    expect(iban('DE8937040044053201300')).toBe(false);
    expect(iban('DE88370400440532013000')).toBe(false);
    expect(iban('XX89370400440532013000')).toBe(false);
  });

  test('remainders of long numbers are those of BigInt', () => {
    fc.assert(
      fc.property(digits(40), fc.integer({ min: 2, max: 10_000 }), (number, divisor) => {
        expect(remainder(number, divisor)).toBe(Number(BigInt(number) % BigInt(divisor)));
      }),
    );
  });
});

/** Numbers that states give to people, where a check digit or a form that nothing else has tells them from other numbers. */
import { isDay, luhn, remainder, verhoeff, weighted } from './checksums.ts';

interface NationalId {
  name: string;
  pattern: RegExp;
  /** Of the match without separators, in upper case. */
  check: (bare: string) => boolean;
  /** Where form and check digit are not enough: words of which one stands shortly before it. */
  words?: RegExp;
}

const DNI_LETTERS = 'TRWAGMYFPDXBNJZSQVHLCKE';
const HETU_LETTERS = '0123456789ABCDEFHJKLMNPRSTUVWXY';
/** Values of the characters at odd places of a codice fiscale, from 0 and A on. */
const FISCALE_ODD = [1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23];
/** Numbers that are printed in every example. */
const EXAMPLES = new Set([
  '12345678Z',
  '00000000T',
  '078051120',
  '123456789',
  '219099999',
  '111111111',
  '11111111111',
  'AB123456C',
  'QQ123456C',
]);

function dni(bare: string): boolean {
  const number = Number(bare.slice(0, -1).replace('X', '0').replace('Y', '1').replace('Z', '2'));
  return DNI_LETTERS[number % 23] === bare.at(-1);
}

function fiscale(bare: string): boolean {
  let sum = 0;
  for (let at = 0; at < 15; at += 1) {
    const code = bare.charCodeAt(at);
    const value = code < 58 ? code - 48 : code - 65;
    sum += at % 2 === 0 ? (FISCALE_ODD[value] as number) : value;
  }
  return String.fromCharCode(65 + (sum % 26)) === bare[15];
}

function cpf(bare: string): boolean {
  const digit = (weights: number[]) => {
    const rest = (weighted(bare, weights) * 10) % 11;
    return rest === 10 ? 0 : rest;
  };
  return (
    !/^(\d)\1+$/.test(bare) &&
    digit([10, 9, 8, 7, 6, 5, 4, 3, 2]) === Number(bare[9]) &&
    digit([11, 10, 9, 8, 7, 6, 5, 4, 3, 2]) === Number(bare[10])
  );
}

function resident(bare: string): boolean {
  const sum = weighted(bare, [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2]);
  return (
    isDay(Number(bare.slice(6, 10)), Number(bare.slice(10, 12)), Number(bare.slice(12, 14))) &&
    '10X98765432'[sum % 11] === bare[17]
  );
}

/** ISO 7064 MOD 11,10. */
function steuerId(bare: string): boolean {
  let product = 10;
  for (let at = 0; at < 10; at += 1) {
    const sum = (Number(bare[at]) + product) % 10 || 10;
    product = (sum * 2) % 11;
  }
  return (11 - product) % 10 === Number(bare[10]) && new Set(bare.slice(0, 10)).size < 10;
}

function belgian(bare: string): boolean {
  const check = Number(bare.slice(9));
  return check === 97 - remainder(bare.slice(0, 9), 97) || check === 97 - remainder(`2${bare.slice(0, 9)}`, 97);
}

function pesel(bare: string): boolean {
  return (
    isDay(Number(bare.slice(0, 2)), Number(bare.slice(2, 4)) % 20, Number(bare.slice(4, 6))) &&
    weighted(bare, [1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1]) % 10 === 0
  );
}

const NATIONAL_IDS: readonly NationalId[] = [
  {
    name: 'US social security number',
    pattern: /\b(?!000|666|9\d\d)\d{3}-(?!00)\d\d-(?!0000)\d{4}\b/g,
    check: () => true,
  },
  {
    name: 'British National Insurance number',
    pattern: /\b(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D]\b/g,
    check: () => true,
    words: /national insurance|\bNI(?:NO)?\b/i,
  },
  { name: 'Spanish DNI or NIE', pattern: /\b(?:\d{8}|[XYZ]-?\d{7})-?[A-HJ-NP-TV-Z]\b/g, check: dni },
  {
    name: 'French social security number',
    pattern: /\b[12] ?\d\d ?(?:0[1-9]|1[0-2]) ?\d\d ?\d{3} ?\d{3} ?\d\d\b/g,
    check: (bare) => Number(bare.slice(13)) === 97 - remainder(bare.slice(0, 13), 97),
  },
  { name: 'Italian codice fiscale', pattern: /\b[A-Z]{6}\d\d[ABCDEHLMPRST]\d\d[A-Z]\d{3}[A-Z]\b/g, check: fiscale },
  { name: 'Brazilian CPF', pattern: /\b\d{3}\.\d{3}\.\d{3}-\d\d\b/g, check: cpf },
  { name: 'Chinese resident identity number', pattern: /\b[1-8]\d{5}(?:19|20)\d{9}[\dXx]\b/g, check: resident },
  {
    name: 'Finnish personal identity code',
    pattern: /\b[0-3]\d[01]\d{3}[-+A]\d{3}[0-9A-FHJ-NPR-Y]\b/g,
    check: (bare) =>
      isDay(Number(bare.slice(4, 6)), Number(bare.slice(2, 4)), Number(bare.slice(0, 2))) &&
      HETU_LETTERS[Number(bare.slice(0, 6) + bare.slice(-4, -1)) % 31] === bare.at(-1),
  },
  {
    name: 'Swedish personal identity number',
    pattern: /\b(?:19|20)?\d\d[01]\d[0-3]\d[-+]\d{4}\b/g,
    check: (bare) => {
      const short = bare.slice(-10);
      return luhn(short) && isDay(Number(short.slice(0, 2)), Number(short.slice(2, 4)), Number(short.slice(4, 6)));
    },
    words: /personnummer|person-?nr|\bPNR\b|personal (?:identity|id)/i,
  },
  { name: 'Belgian national number', pattern: /\b\d\d\.\d\d\.\d\d-\d{3}\.\d\d\b/g, check: belgian },
  {
    name: 'Dutch BSN',
    pattern: /\b\d{9}\b|\b\d{4}\.\d\d\.\d{3}\b/g,
    check: (bare) => weighted(bare, [9, 8, 7, 6, 5, 4, 3, 2, -1]) % 11 === 0,
    words: /\bBSN\b|burgerservice|sofi/i,
  },
  {
    name: 'German tax number',
    pattern: /\b[1-9]\d(?: ?\d{3}){3}\b/g,
    check: steuerId,
    words: /steuer|tax id|\bTIN\b|\bIdNr\b/i,
  },
  {
    name: 'Aadhaar number',
    pattern: /\b[2-9]\d{3}[ -]?\d{4}[ -]?\d{4}\b/g,
    check: verhoeff,
    words: /aadha+r|\bUIDAI\b/i,
  },
  { name: 'Polish PESEL', pattern: /\b\d{11}\b/g, check: pesel, words: /pesel/i },
];

const WORDS_BEFORE = 40;

/** @returns whether it is one; `found` is called with its name, place and text. */
export function findNationalIds(text: string, found: (name: string, index: number, match: string) => void): void {
  for (const { name, pattern, check, words } of NATIONAL_IDS) {
    if (words !== undefined && !words.test(text)) continue;
    for (const match of text.matchAll(pattern)) {
      const bare = match[0].toUpperCase().replace(/[ .+-]/g, '');
      if (EXAMPLES.has(bare) || !check(bare)) continue;
      if (words !== undefined && !words.test(text.slice(Math.max(0, match.index - WORDS_BEFORE), match.index)))
        continue;
      found(name, match.index, match[0]);
    }
  }
}

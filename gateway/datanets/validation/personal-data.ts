/**
 * Personal data in a text. Precision goes before recall: a reviewer who is told of harmless numbers stops reading. So numbers count only with a
 * valid check digit, a form that nothing else has, or a word that says what they are; what documentation uses as examples never does.
 */
import { iban, ibanLength, luhn } from './checksums.ts';
import { type Findings, shapeOf } from './findings.ts';
import { findNationalIds } from './national-ids.ts';
import type { Part } from './text.ts';

/** Labels of example domains (RFC 2606, RFC 6761) and of those that texts about addresses make up. */
const EXAMPLE_DOMAIN =
  /(?:^|\.)(?:example|test|invalid|localhost|local)$|^(?:[\w-]+\.)*(?:example|domain|yourdomain|mydomain|yourcompany|mycompany|company|website|yourwebsite|email|mail|yourmail|foo|bar|acme|abc|xyz|sample|host)\.\w+$/i;
const EXAMPLE_NAME =
  /^(?:git|name|your[._-]?name|your[._-]?e?mail|e?mail|username|user|someone|somebody|first[._-]?name[._-]?.*|x+|foo|test)$/i;
const DOMAIN = /^(?:[\p{L}\p{N}](?:[\p{L}\p{N}-]{0,61}[\p{L}\p{N}])?\.)+(?:\p{L}{2,24}|xn--[a-z0-9-]{2,59})/u;

/** The at sign first, then left and right of it: no pattern that looks back over the whole text. */
function findEmails(part: Part, findings: Findings): void {
  const { text } = part;
  for (let at = text.indexOf('@'); at !== -1; at = text.indexOf('@', at + 1)) {
    let start = at;
    while (start > 0 && at - start < 64 && /[\p{L}\p{N}._%+-]/u.test(text[start - 1] as string)) start -= 1;
    const name = text.slice(start, at).replace(/^[._%+-]+/, '');
    // Patterns and paths, not names.
    if (/[.%+-]$/.test(name)) continue;
    const domain = DOMAIN.exec(text.slice(at + 1, at + 255))?.[0];
    if (name === '' || domain === undefined) continue;
    // Density suffixes of image names: logo@2x.png.
    if (/^\dx\./.test(domain) || EXAMPLE_DOMAIN.test(domain) || EXAMPLE_NAME.test(name)) continue;
    // User and password of a URL are another matter.
    if (text.slice(Math.max(0, start - 3), start) === '://') continue;
    findings.at('email_address', part, at - name.length, `An e-mail address (${shapeOf(`${name}@${domain}`)})`);
  }
}

const PHONE_WORDS =
  /(?:\b(?:phone|t[eé]l|telephone|mobile|cell|call|fax|text|whatsapp|sms|contact|fon|telefon|handy|mobil|rufnummer|t[eé]l[eé]phone|portable|tel[eé]fono|m[oó]vil|celular|telefone|telefono|cellulare|telefoon|numer|telefonu|puhelin|telefonnummer)\b\.?|☎|📞|電話|电话|телефон|тел\.)[^\n]{0,24}$/i;
/** E.164: a plus sign and 8 to 15 digits, grouped or not. */
const INTERNATIONAL =
  /(?<![\p{L}\p{N}=*/^)])\+[1-9]\d{0,2}[ ./-]?(?:\(\d{1,5}\)[ ./-]?)?\d(?:[ ./-]?\d){5,13}(?![\p{L}\p{N}])/gu;
/** North American numbering plan, with its usual punctuation. */
const AMERICAN = /(?<![\d.-])(?:1[-. ])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[-. ])[2-9]\d\d[-. ]\d{4}(?![\d-]|\.\d)/g;
/** Pairs as in France, mobile and area codes as in Britain and Germany: with a word before it. */
const NATIONAL =
  /(?<![\d.,-])(?:0\d{1,5}|\(0\d{1,5}\))[ ./-]?\d{2,8}(?:[ ./-]?\d{2,8}){0,4}(?![\d-]|[.,]\d)|(?<![\d.,-])[6-9]\d{4}[ -]?\d{5}(?![\d-])/g;

const digitsOf = (text: string) => text.replace(/\D/g, '');

/** Films' and documentation's: 555-0100 to 555-0199 (and 555 as an exchange at all), runs, one digit again and again. */
function inventedPhone(digits: string): boolean {
  return (
    /555\d{4}$/.test(digits) ||
    /^1?555/.test(digits) ||
    /(\d)\1{5}/.test(digits) ||
    '01234567890123456789'.includes(digits.slice(-8)) ||
    '98765432109876543210'.includes(digits.slice(-8))
  );
}

function findPhones(part: Part, findings: Findings): void {
  const { text } = part;
  const taken: number[] = [];
  const note = (index: number, match: string) => {
    const digits = digitsOf(match);
    if (digits.length < 8 || digits.length > 15 || inventedPhone(digits)) return;
    if (taken.some((other) => Math.abs(other - index) < match.length)) return;
    taken.push(index);
    findings.at('phone_number', part, index, `A telephone number (${shapeOf(match)})`);
  };
  if (text.includes('+')) for (const match of text.matchAll(INTERNATIONAL)) note(match.index, match[0]);
  for (const match of text.matchAll(AMERICAN)) {
    const said =
      match[0].includes('(') || /^(?:1-)?\d{3}-/.test(match[0]) || PHONE_WORDS.test(before(text, match.index));
    if (said) note(match.index, match[0]);
  }
  for (const match of text.matchAll(NATIONAL))
    if (PHONE_WORDS.test(before(text, match.index))) note(match.index, match[0]);
}

function before(text: string, index: number): string {
  return text.slice(Math.max(0, index - 40), index);
}

function findIbans(part: Part, findings: Findings): void {
  for (const match of part.text.matchAll(/\b[A-Z]{2}\d\d(?: ?[A-Z0-9]){11,30}/g)) {
    const length = ibanLength(match[0].slice(0, 2));
    if (length === undefined) continue;
    // The pattern may have run on into the words after it.
    const bare = match[0].replaceAll(' ', '').slice(0, length);
    if (iban(bare)) findings.at('iban', part, match.index, `An IBAN (${shapeOf(bare)})`);
  }
}

/** Brands by prefix and length (ISO/IEC 7812), in the groups that are printed on the card or in none. */
const CARD =
  /(?<![\d.,-])(?:(?:4\d{3}|5[1-5]\d\d|2[2-7]\d\d|6011|65\d\d|64[4-9]\d|35\d\d)([ -]?)\d{4}\1\d{4}\1\d{4}|3[47]\d\d([ -]?)\d{6}\2\d{5}|3(?:0[0-5]|[68]\d)\d([ -]?)\d{6}\3\d{4})(?![\d-]|[.,]\d)/g;
/** What payment services print for trying out. */
const TRIAL_CARDS = new Set([
  '4242424242424242',
  '4000056655665556',
  '5555555555554444',
  '2223003122003222',
  '5200828282828210',
  '5105105105105100',
  '378282246310005',
  '371449635398431',
  '6011111111111117',
  '6011000990139424',
  '3056930009020004',
  '30569309025904',
  '38520000023237',
  '36227206271667',
  '3566002020360505',
  '3530111333300000',
  '4111111111111111',
  '4012888888881881',
  '4222222222222',
  '4000000000000002',
  '4539578763621486',
]);

function findCards(part: Part, findings: Findings): void {
  for (const match of part.text.matchAll(CARD)) {
    const digits = digitsOf(match[0]);
    if (!luhn(digits) || TRIAL_CARDS.has(digits) || /(\d)\1{7}/.test(digits)) continue;
    findings.at('card_number', part, match.index, `A payment card's number (${shapeOf(match[0])})`);
  }
}

const IPV4 = /(?<![\d.\w-])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d\w-]|\.\d)/g;
const KNOWN_SERVERS = new Set([
  '8.8.8.8',
  '8.8.4.4',
  '1.1.1.1',
  '1.0.0.1',
  '9.9.9.9',
  '208.67.222.222',
  '208.67.220.220',
]);
/** Only global unicast addresses, 2000::/3, without the documentation's 2001:db8::/32 and 3fff::/20. */
const IPV6 =
  /(?<![\w:.])(?!2001:0?db8:|3fff:)[23][0-9a-f]{3}(?::[0-9a-f]{1,4}){1,7}(?:::(?:[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){0,5})?)?(?![\w:])/gi;

function isPersonalIpv4(text: string): boolean {
  const [a = 0, b = 0, c = 0, d = 0] = text.split('.').map(Number);
  if (a === 0 || a === 10 || a === 127 || a >= 224 || KNOWN_SERVERS.has(text)) return false;
  if (
    (a === 172 && b >= 16 && b <= 31) ||
    (a === 192 && b === 168) ||
    (a === 169 && b === 254) ||
    (a === 100 && b >= 64 && b <= 127)
  )
    return false;
  if (
    (a === 192 && b === 0 && c <= 2) ||
    (a === 198 && b === 51 && c === 100) ||
    (a === 203 && b === 0 && c === 113) ||
    (a === 198 && b >= 18 && b <= 19)
  )
    return false;
  // Versions and numbers of sections look the same, but are small. A network's own address is nobody's.
  return d !== 0 && [a, b, c, d].filter((octet) => octet >= 10).length >= 2 && a >= 10;
}

function findAddresses(part: Part, findings: Findings): void {
  for (const match of part.text.matchAll(IPV4)) {
    if (
      !isPersonalIpv4(match[0]) ||
      /\b(?:v|ver|version|section|build|release)\.? ?$/i.test(before(part.text, match.index))
    )
      continue;
    findings.at('ip_address', part, match.index, `A public IP address (${shapeOf(match[0])})`);
  }
  if (!part.text.includes(':')) return;
  for (const match of part.text.matchAll(IPV6)) {
    const groups = match[0].split(':').filter((group) => group !== '').length;
    if (match[0].includes('::') ? groups < 3 || groups > 7 : groups !== 8) continue;
    findings.at('ip_address', part, match.index, `A public IP address (${shapeOf(match[0])})`);
  }
}

/** House number, street and post code close to each other, as on an envelope. */
const STREETS = [
  /\b\d{1,5}[A-Z]? (?:[NSEW]\.? )?(?:[A-Z][\p{L}'-]+ ){1,3}(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Way|Terrace|Close|Crescent)\b\.?,?[^\n]{0,30}?[\s,](?:[A-Z]{2} \d{5}(?:-\d{4})?|[A-Z]{1,2}\d[A-Z\d]? \d[A-Z]{2})\b/u,
  /\b\p{Lu}[\p{L}. -]{1,30}(?:straße|strasse|str\.|weg|platz|gasse|allee) \d{1,4} ?[a-z]?,?\s+(?:[A-Z]-)?\d{4,5} \p{Lu}/u,
  /\b\d{1,4}(?: bis| ter)?,? (?:rue|avenue|boulevard|impasse|chemin|place) [^\n,]{2,40},?\s+\d{5} \p{Lu}/iu,
];

function findStreets(part: Part, findings: Findings): void {
  for (const street of STREETS) {
    const match = street.exec(part.text);
    if (match !== null) findings.at('street_address', part, match.index, 'What looks like a postal address');
  }
}

export function checkPersonalData(part: Part, findings: Findings): void {
  const { text } = part;
  if (text.includes('@')) findEmails(part, findings);
  // Everything else has at least four digits.
  if (!/\d\D{0,4}\d\D{0,4}\d\D{0,4}\d/.test(text)) return;
  findStreets(part, findings);
  findAddresses(part, findings);
  if (!/\d(?:\D{0,2}\d){5}/.test(text)) return;
  findPhones(part, findings);
  findIbans(part, findings);
  findCards(part, findings);
  findNationalIds(text, (name, index, match) =>
    findings.at('national_id', part, index, `A personal number (${name}, ${shapeOf(match)})`),
  );
}

/** Credentials in a text: whoever reads the Datanet, or a model trained on it, could use them. */
import { type Findings, shapeOf } from './findings.ts';
import type { Part } from './text.ts';

/** Forms that services gave their keys so that they can be found (as secret scanners know them). */
const FORMS: readonly { what: string; pattern: RegExp }[] = [
  { what: 'A private key', pattern: /-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----/g },
  { what: 'An AWS access key', pattern: /\b(?:AKIA|ASIA)[A-Z2-7]{16}\b/g },
  { what: 'A GitHub token', pattern: /\b(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{60,255})\b/g },
  { what: 'A GitLab token', pattern: /\bglpat-[A-Za-z0-9_-]{20,}/g },
  { what: 'A Slack token', pattern: /\bxox[abeoprs]-[A-Za-z0-9-]{20,}/g },
  { what: 'A Google API key', pattern: /\bAIza[A-Za-z0-9_-]{35}\b/g },
  { what: 'A Stripe key', pattern: /\b[rs]k_live_[A-Za-z0-9]{20,}/g },
  { what: 'An API key', pattern: /\bsk-(?:proj-|ant-[a-z0-9]+-|or-v1-|svcacct-)?[A-Za-z0-9_-]{32,}/g },
  { what: 'A Hugging Face token', pattern: /\bhf_[A-Za-z0-9]{34}\b/g },
  { what: 'An npm token', pattern: /\bnpm_[A-Za-z0-9]{36}\b/g },
  { what: 'A SendGrid key', pattern: /\bSG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}/g },
  { what: 'A Telegram bot token', pattern: /\b\d{8,10}:AA[A-Za-z0-9_-]{33}\b/g },
  { what: 'An API key', pattern: /\bmf-[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])/g },
];
/** Beginnings of the forms above: most texts have none of them. */
const HINT = /-----BEGIN |AKIA|ASIA|gh[pousr]_|github_pat_|glpat-|xox|AIza|k_live_|sk-|hf_|npm_|SG\.|:AA|mf-/;
const JWT = /\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}/g;
/** A URL with a password: what stands between the colon and the at sign. */
const URL_PASSWORD = /\b[a-z][a-z0-9+.-]{1,20}:\/\/[^\s:/@]{1,64}:([^\s:/@]{6,128})@[\w.-]+/gi;
const ASSIGNED =
  /\b[\w-]{0,32}(?:passwor[dt]|passwd|secret|api[_-]?key|access[_-]?token|auth[_-]?token)[\w-]{0,16}["']?\s{0,3}[:=]\s{0,3}["']([^"'\s]{12,200})["']/gi;
const SAMPLE =
  /example|sample|your|dummy|placeholder|changeme|password|secret|xxxx|\*\*\*|\.\.\.|1234567|abcdef|<|\{|\$/i;

/** Shannon entropy in bits a character. */
export function entropyOf(text: string): number {
  const counts = new Map<string, number>();
  for (const character of text) counts.set(character, (counts.get(character) ?? 0) + 1);
  let bits = 0;
  for (const count of counts.values()) bits -= (count / text.length) * Math.log2(count / text.length);
  return bits;
}

/** Random enough for a machine to have made it. */
function looksRandom(text: string): boolean {
  return !SAMPLE.test(text) && /\d/.test(text) && /[a-z]/i.test(text) && entropyOf(text) >= 3.4;
}

function isJwt(text: string): boolean {
  try {
    const header: unknown = JSON.parse(Buffer.from(text.slice(0, text.indexOf('.')), 'base64url').toString());
    return typeof header === 'object' && header !== null && 'alg' in header;
  } catch {
    return false;
  }
}

export function checkSecrets(part: Part, findings: Findings): void {
  const { text } = part;
  const note = (what: string, index: number, secret: string) =>
    findings.at('secret', part, index, `${what} (${shapeOf(secret)})`);
  if (HINT.test(text))
    for (const { what, pattern } of FORMS)
      for (const match of text.matchAll(pattern)) {
        const key = what === 'A private key';
        if (key || (!SAMPLE.test(match[0]) && entropyOf(match[0]) >= 3)) note(what, match.index, match[0]);
      }
  if (text.includes('eyJ'))
    for (const match of text.matchAll(JWT)) if (isJwt(match[0])) note('A JSON Web Token', match.index, match[0]);
  if (text.includes('://'))
    for (const match of text.matchAll(URL_PASSWORD))
      if (!SAMPLE.test(match[1] as string) && entropyOf(match[1] as string) >= 2.5)
        note('A URL with a password', match.index, match[1] as string);
  if (/passw|secret|key|token/i.test(text))
    for (const match of text.matchAll(ASSIGNED))
      if (looksRandom(match[1] as string)) note('What looks like a password or key', match.index, match[1] as string);
}

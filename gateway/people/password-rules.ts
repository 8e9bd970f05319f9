/**
 * What a password must be: long, and not among those that are tried first. No rule asks for digits or signs, since those make passwords
 * that are hard to remember and easy to guess (NIST SP 800-63B, section 5.1.1.2).
 */
import { badRequest } from '../errors.ts';
import { limits } from '../limits.ts';

/** The commonest words of leaked passwords, and this program's own name; also in front of or behind digits and signs. */
const COMMON = new Set(
  `password passwort passw0rd p@ssw0rd p@ssword letmein letmeinnow welcome welcomehome iloveyou iloveyouforever ilovemyself
  qwerty qwertz azerty qwertyuiop qwertyuiopasdf qwertyuiopasdfgh asdfghjkl asdfghjklzxc zxcvbnm zxcvbnmasdfg qwertyqwerty qazwsxedc qazwsxedcrfv
  1qaz2wsx 1qaz2wsx3edc 1q2w3e4r 1q2w3e4r5t 1q2w3e4r5t6y q1w2e3r4 q1w2e3r4t5y6 zaq12wsx abc123 abcd1234 a1b2c3d4 a1b2c3d4e5f6 abcdefghijkl abcdefghijklmn
  admin administrator adminadmin root toor master superman batman football baseball basketball princess sunshine shadow monkey dragon
  whatever trustno1 starwars pokemon computer internet charlie michael jennifer jordan hunter secret changeme changemenow changeit default
  login guest user username test testtest testing testtesttest temporary temp hello helloworld freedom ninja mustang killer flower
  liverpool chelsea arsenal correcthorse correcthorsebatterystaple mypassword mypasswordis thisismypassword yourpassword newpassword
  passwordpassword openai modelfactory datanet summer winter spring autumn company samsung google facebook`
    .split(/\s+/)
    .filter(Boolean),
);
const SEQUENCES = [
  '01234567890123456789',
  'abcdefghijklmnopqrstuvwxyz',
  'qwertyuiopasdfghjklzxcvbnm',
  'qwertzuiopasdfghjklyxcvbnm',
];
/** Shorter ones are in many a good password. */
const WORD_CHARACTERS_MIN = 4;
/** Parts of an e-mail address shorter than this may be in a password by accident. */
const NAME_CHARACTERS_MIN = 4;

const reversed = (text: string) => [...text].reverse().join('');

/** A few characters over and over: aaaaaaaaaaaa, 121212121212, abcabcabcabc. */
function repeats(text: string): boolean {
  return /^(.{1,4})\1{2,}.{0,3}$/su.test(text) || new Set(text).size < 4;
}

function isSequence(text: string): boolean {
  return SEQUENCES.some((sequence) => {
    const line = sequence.repeat(2);
    return line.includes(text) || reversed(line).includes(text);
  });
}

/** Digits and signs around or between the letters make a common word no better. */
function isCommon(text: string): boolean {
  const core = text.replaceAll(/^\P{L}+|\P{L}+$/gu, '');
  const letters = text.replaceAll(/\P{L}/gu, '');
  return [text, core, letters].some(
    (word) =>
      word.length >= WORD_CHARACTERS_MIN && (COMMON.has(word) || COMMON.has(reversed(word)) || isSequence(word)),
  );
}

/** What is wrong with a password, or null. */
export function passwordProblem(password: string, email: string): string | null {
  const text = password.normalize('NFKC');
  const length = [...text].length;
  if (length < limits.passwordCharactersMin) return `it must have at least ${limits.passwordCharactersMin} characters`;
  if (length > limits.passwordCharactersMax) return `it must have at most ${limits.passwordCharactersMax} characters`;
  if (/\p{Cc}/u.test(text)) return 'it must not have control characters';
  const low = text.toLowerCase();
  const [local = ''] = email.split('@');
  if (low.includes(email) || (local.length >= NAME_CHARACTERS_MIN && low.includes(local)))
    return 'it must not contain your e-mail address';
  if (repeats(low) || isCommon(low))
    return 'it is among those that are guessed first; three or four words that have nothing to do with each other make a good one';
  return null;
}

/** @throws ApiError 400. */
export function checkPassword(password: string, email: string, param = 'password'): void {
  const problem = passwordProblem(password, email);
  if (problem !== null) throw badRequest(param, 'weak_password', `Invalid '${param}': ${problem}.`);
}

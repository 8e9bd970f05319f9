/** What is wrong with a row, rule by rule. A rule is told once, with the first places where it was broken. */
import type { RowReason } from '../../db/datanet-schema.ts';
import type { Part } from './text.ts';

/** Places that a message names. */
const PLACES_MAX = 3;
/** Characters of a masked finding. */
const SHAPE_MAX = 32;

/**
 * What a rule takes off the score of 100. A row below about 50 should not be approved unread; rules of 50 and more are for what would do harm or
 * teach nothing.
 */
export const POINTS = {
  empty: 60,
  no_assistant: 60,
  no_answer_at_end: 40,
  same_answers: 60,
  same_as_prompt: 50,
  copies_prompt: 20,
  no_words: 40,
  too_short: 20,
  too_long: 10,
  repetition: 40,
  damaged_encoding: 30,
  control_characters: 20,
  hidden_text: 30,
  control_tokens: 20,
  html: 10,
  placeholder: 30,
  links_only: 30,
  other_language: 30,
  secret: 50,
  email_address: 25,
  phone_number: 25,
  iban: 40,
  card_number: 50,
  national_id: 50,
  ip_address: 10,
  street_address: 10,
} as const;
export type Rule = keyof typeof POINTS;

/** Rules that are about somebody's personal data. */
export const PERSONAL_DATA_RULES: readonly Rule[] = [
  'email_address',
  'phone_number',
  'iban',
  'card_number',
  'national_id',
  'ip_address',
  'street_address',
];

interface Finding {
  message: string;
  places: string[];
  count: number;
}

export class Findings {
  readonly #found = new Map<Rule, Finding>();

  /** @param message a sentence about the row as a whole, without its personal data. The first one of a rule is kept. */
  add(rule: Rule, message: string): void {
    const known = this.#found.get(rule);
    if (known === undefined) this.#found.set(rule, { message, places: [], count: 1 });
    else known.count += 1;
  }

  /** @param what is there, as in "an e-mail address"; the message says where: field and character, from 1. */
  at(rule: Rule, part: Part, index: number, what: string): void {
    let known = this.#found.get(rule);
    if (known === undefined) {
      known = { message: what, places: [], count: 0 };
      this.#found.set(rule, known);
    }
    known.count += 1;
    if (known.places.length < PLACES_MAX) known.places.push(`${part.field}, character ${index + 1}`);
  }

  get size(): number {
    return this.#found.size;
  }

  reasons(): RowReason[] {
    const reasons: RowReason[] = [];
    for (const [rule, { message, places, count }] of this.#found) {
      const more = count > places.length ? ` and ${count - places.length} more` : '';
      const text = places.length === 0 ? message : `${message}: ${places.join('; ')}${more}.`;
      reasons.push({ rule, points: POINTS[rule], message: text });
    }
    return reasons.sort((a, b) => b.points - a.points);
  }
}

/** The form of a text without the text: letters become x, digits 0. Tells a reviewer what to look for and says nothing else. */
export function shapeOf(text: string): string {
  const shape = text
    .slice(0, SHAPE_MAX)
    .replace(/\p{N}/gu, '0')
    .replace(/[\p{L}\p{M}]/gu, 'x');
  return text.length > SHAPE_MAX ? `${shape}…` : shape;
}

/** How good a row looks, from 0 to 100, and why it is not 100. Pure; what it says is for a reviewer, who decides. */
import type { TrainingExample } from '../../../daemon/protocol.ts';
import type { RowReason } from '../../db/datanet-schema.ts';
import { checkCharacters } from './characters.ts';
import { Findings } from './findings.ts';
import { languageOf, primaryLanguage } from './languages.ts';
import { checkPersonalData } from './personal-data.ts';
import { checkRepetition } from './repetition.ts';
import { checkSecrets } from './secrets.ts';
import { checkStructure } from './structure.ts';
import { partsOf } from './text.ts';

export { PERSONAL_DATA_RULES, POINTS, type Rule } from './findings.ts';
export { loadLanguages } from './languages.ts';
export { textOf } from './text.ts';

export interface Verdict {
  /** 100 less the points of the reasons, not below 0. */
  score: number;
  /** Most points first; one a rule. */
  reasons: RowReason[];
  /** ISO 639-1 code; null: too short to tell, no language stands out, or `loadLanguages` was not called. */
  language: string | null;
}

/** So much of one text is looked through for personal data and secrets; a document's chunk is shorter. */
const CHARACTERS_LOOKED_AT = 200_000;

/** @param languages BCP 47 tags that rows should be in; [] = any. */
export function validateRow(example: TrainingExample, options: { languages: readonly string[] }): Verdict {
  const findings = new Findings();
  const parts = partsOf(example);
  checkStructure(example, parts, findings);
  for (const part of parts) {
    if (part.text === '') continue;
    const looked =
      part.text.length > CHARACTERS_LOOKED_AT ? { ...part, text: part.text.slice(0, CHARACTERS_LOOKED_AT) } : part;
    checkCharacters(looked, findings);
    checkRepetition(looked, findings);
    checkPersonalData(looked, findings);
    checkSecrets(looked, findings);
  }
  const guess = languageOf(parts, options.languages.map(primaryLanguage));
  if (guess !== null && !guess.fits)
    findings.add(
      'other_language',
      `The text reads as ${nameOf(guess.language)}; the Datanet is in ${options.languages.map(nameOf).join(', ')}.`,
    );
  const reasons = findings.reasons();
  const points = reasons.reduce((sum, reason) => sum + reason.points, 0);
  return { score: Math.max(0, 100 - points), reasons, language: guess?.language ?? null };
}

const names = new Intl.DisplayNames(['en'], { type: 'language' });

function nameOf(tag: string): string {
  try {
    return names.of(tag) ?? tag;
  } catch {
    return tag;
  }
}

/** From an example to what is stored of it: canonical content, hash, verdict, signature. Pure. */
import { canonicalJson } from '../../../daemon/evidence.ts';
import type { TrainingExample } from '../../../daemon/protocol.ts';
import type { ContributionProblem, DatanetKind, RowReason } from '../../db/datanet-schema.ts';
import { limits } from '../../limits.ts';
import { bandsOf, signatureOf } from '../validation/minhash.ts';
import { textOf, validateRow } from '../validation/validate.ts';
import { contentHash } from '../versions/leaf.ts';
import type { Numbered } from './records.ts';

/** Known by its content. */
export interface Canonical {
  line: number;
  example: TrainingExample;
  content: string;
  hash: string;
}

export interface Prepared extends Canonical {
  text: string;
  score: number;
  reasons: RowReason[];
  language: string | null;
  signature: Uint8Array;
  bands: number[];
}

/** Or why it cannot be a row of such a Datanet. */
export function canonical(item: Numbered, kind: DatanetKind): Canonical | ContributionProblem {
  const { line, example } = item;
  const problem = (rule: string, message: string): ContributionProblem => ({ line, field: null, rule, message });
  if (example.kind !== kind) return problem('wrong_kind', wrongKind(example.kind, kind));
  const content = canonicalJson(example);
  if (content === null)
    return problem('not_unicode', 'The text of the row is not valid Unicode: it has half a character.');
  if (content.length > limits.contributionRowCharactersMax) {
    const message = `The row has ${content.length} characters as JSON, at most ${limits.contributionRowCharactersMax} are taken; split it.`;
    return problem('row_too_long', message);
  }
  return { line, example, content, hash: contentHash(content) };
}

function wrongKind(given: DatanetKind, wanted: DatanetKind): string {
  const advice =
    wanted === 'chat' && given === 'completion'
      ? ' To make chats of prompts and completions, say which columns hold what: columns = {"prompt": "prompt", "completion": "completion"}.'
      : wanted === 'completion' && given === 'chat'
        ? ' To make plain text of pairs, send prompt and completion, with format = completion.'
        : '';
  return `The row is of the kind ${given}, but this Datanet takes ${wanted}.${advice}`;
}

export function prepare(row: Canonical, datanet: { seq: number; languages: readonly string[] }): Prepared {
  const text = textOf(row.example);
  const verdict = validateRow(row.example, { languages: datanet.languages });
  const signature = signatureOf(text);
  return {
    ...row,
    text,
    score: verdict.score,
    reasons: verdict.reasons,
    language: verdict.language,
    signature,
    bands: bandsOf(signature, datanet.seq),
  };
}

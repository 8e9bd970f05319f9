/** From an example to what is stored of it: canonical content, hash, verdict, signature, leaf. Pure. */
import type { KeyObject } from 'node:crypto';
import { canonicalJson } from '../../../daemon/evidence.ts';
import type { TrainingExample } from '../../../daemon/protocol.ts';
import type { ContributionProblem, DatanetKind, RowReason } from '../../db/datanet-schema.ts';
import { limits } from '../../limits.ts';
import { indexed } from '../search/words.ts';
import { bandsOf, signatureOf } from '../validation/minhash.ts';
import { textOf, validateRow } from '../validation/validate.ts';
import { contentHash, LEAF_TYPE, leafOf } from '../versions/leaf.ts';
import type { Numbered } from './records.ts';

/** Known by its content. */
export interface Canonical {
  line: number;
  example: TrainingExample;
  content: string;
  hash: string;
}

export interface Prepared extends Omit<Canonical, 'example'> {
  /** Its words as they go into the full-text index. */
  words: string;
  score: number;
  reasons: RowReason[];
  language: string | null;
  signature: Uint8Array;
  bands: number[];
  /** The leaf of the Merkle tree, signed, and its hash. */
  entry: string;
  leafHash: Uint8Array;
}

/** What rows of a contribution have in common. */
export interface Context {
  datanet: { seq: number; id: string; languages: readonly string[] };
  contribution: { id: string; contributor: string; licence: string; createdAt: number };
  generatedBy: string | null;
  privateKey: KeyObject;
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

/** About 0.25 ms a row: most of what reading a contribution takes. */
export function prepare(row: Omit<Canonical, 'example'>, context: Context): Prepared {
  const { datanet, contribution } = context;
  const example = JSON.parse(row.content) as TrainingExample;
  const text = textOf(example);
  const { score, reasons, language } = validateRow(example, { languages: datanet.languages });
  const signature = signatureOf(text);
  const { line, content, hash } = row;
  const leaf = leafOf(
    {
      type: LEAF_TYPE,
      datanet: datanet.id,
      content: hash,
      contributor: contribution.contributor,
      contribution: contribution.id,
      licence: contribution.licence,
      time: new Date(contribution.createdAt).toISOString(),
      generated_by: context.generatedBy,
    },
    context,
  );
  const bands = bandsOf(signature, datanet.seq);
  return {
    line,
    content,
    hash,
    words: indexed(text, datanet.seq),
    score,
    reasons,
    language,
    signature,
    bands,
    entry: leaf.entry,
    leafHash: leaf.hash,
  };
}

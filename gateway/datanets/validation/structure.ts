/** Whether a row teaches anything: lengths, answers that are there and are answers, leftovers of templates and web pages. */
import type { TrainingExample } from '../../../daemon/protocol.ts';
import type { Findings } from './findings.ts';
import type { Part } from './text.ts';

/** Characters of all texts of a row. */
const ROW_MIN = 12;
/** A document's chunk of fewer says nothing. */
const PLAIN_MIN = 40;
/** About 8,000 tokens: what goes beyond a model's context is cut off. */
const ROW_MAX = 32_000;
const COPY_MIN = 40;
const COPY_SHARE = 0.8;

const LETTER = /[\p{L}\p{N}\p{S}]/u;
const LINKS = /https?:\/\/\S+|www\.\S+/gi;
const PLACEHOLDER_WHOLE =
  /^\W*(?:todo|tbd|tba|fixme|n\/?a|none|null|nil|undefined|nan|placeholder|test|testing|asdf+|qwerty|xxx+|foo|bar|foo bar|insert (?:text|answer|response) here|(?:your|the) (?:text|answer|response) (?:goes )?here|answer here|no answer|\[object object\])\W*$/i;
const PLACEHOLDER_INSIDE =
  /lorem ipsum dolor|\[object Object\]|\{\{\s*[\w.]{1,40}\s*\}\}|<(?:insert|your|enter) [\w ]{2,40}>/i;
/** One-word answers that are all right where a question asks for them. */
const WORD_ANSWERS = /^\W*(?:none|null|undefined|nan|n\/?a|test|bar|nil)\W*$/i;
const TAG =
  /<\/?(?:p|br|div|span|a|ul|ol|li|td|tr|table|h[1-6]|img|strong|font|script|style|iframe)(?:\s[^<>]{0,200})?\/?>/gi;
const ENTITY = /&(?:nbsp|amp|quot|lt|gt|apos|rsquo|lsquo|ldquo|rdquo|mdash|ndash|hellip|#\d{2,5}|#x[0-9a-f]{2,5});/gi;
/** Rows about code and pages have tags for a reason. */
const ABOUT_MARKUP =
  /```|html|<\/code>|\bxml\b|\btags?\b|\bcss\b|\bmarkup\b|web ?page|web ?site|javascript|react|\bjsx\b|<!doctype/i;

const lastOf = <T>(list: readonly T[]): T | undefined => list[list.length - 1];

/** What the model is to learn to say: completion, assistant messages, preferred answer. */
function isAnswer(part: Part): boolean {
  return part.field === 'completion' || part.role === 'assistant';
}

function bare(text: string): string {
  return text.toLowerCase().replace(/\s+/g, ' ').trim();
}

export function checkStructure(example: TrainingExample, parts: readonly Part[], findings: Findings): void {
  checkTurns(example, findings);
  let characters = 0;
  for (const part of parts) characters += part.text.length;
  const plain = example.kind === 'completion' && example.prompt === '';
  const least = plain ? PLAIN_MIN : ROW_MIN;
  if (characters > ROW_MAX)
    findings.add(
      'too_long',
      `The row has ${characters} characters; what exceeds a model's context is cut off. Split it.`,
    );
  if (characters > 0 && characters < least)
    findings.add('too_short', `The row has only ${characters} characters, which is too little to learn from.`);
  const prompt = lastOf(parts.filter((part) => !isAnswer(part) && part.role !== 'system' && part.role !== 'developer'));
  for (const part of parts) {
    checkLeftovers(part, findings);
    if (!isAnswer(part)) continue;
    if (part.text.trim() === '') {
      if (!hasToolCalls(example, part)) findings.at('empty', part, 0, 'An empty answer');
    } else if (!LETTER.test(part.text)) findings.at('no_words', part, 0, 'An answer without words or numbers');
    else if (part.text.includes('://') && !LETTER.test(part.text.replace(LINKS, '')))
      findings.at('links_only', part, 0, 'An answer of nothing but links');
    else if (prompt !== undefined && prompt.text !== '') checkCopy(prompt, part, findings);
  }
  if (
    parts.some((part) => part.text.includes('<') || part.text.includes('&')) &&
    !parts.some((part) => ABOUT_MARKUP.test(part.text))
  )
    for (const part of parts) checkMarkup(part, findings);
}

function hasToolCalls(example: TrainingExample, part: Part): boolean {
  if (example.kind === 'completion') return false;
  const index = /^messages\[(\d+)\]/.exec(part.field)?.[1];
  const message = index !== undefined ? example.messages[Number(index)] : undefined;
  const calls = message?.tool_calls ?? message?.function_call;
  return Array.isArray(calls) ? calls.length > 0 : typeof calls === 'object' && calls !== null;
}

function checkTurns(example: TrainingExample, findings: Findings): void {
  if (example.kind === 'completion') return;
  if (example.kind === 'preference') {
    const { preferred, rejected } = example;
    if (preferred.content !== null && rejected.content !== null && bare(preferred.content) === bare(rejected.content))
      findings.add('same_answers', 'The preferred and the rejected answer are the same, so nothing is preferred.');
    return;
  }
  const { messages } = example;
  if (!messages.some((message) => message.role === 'assistant'))
    findings.add('no_assistant', 'No message is from the assistant, so there is nothing to learn to say.');
  else if (lastOf(messages)?.role !== 'assistant')
    findings.add(
      'no_answer_at_end',
      `The last message (messages[${messages.length - 1}]) is not the assistant's; nobody answers it.`,
    );
}

function checkCopy(prompt: Part, answer: Part, findings: Findings): void {
  // Cheap first: texts of different lengths can still be copies, but not the other way round.
  const asked = bare(prompt.text);
  const said = bare(answer.text);
  if (asked === said) findings.at('same_as_prompt', answer, 0, 'An answer that is its prompt');
  else if (asked.length >= COPY_MIN && asked.length > COPY_SHARE * said.length && said.includes(asked))
    findings.at('copies_prompt', answer, 0, 'An answer that is mostly its prompt');
}

function checkLeftovers(part: Part, findings: Findings): void {
  const { text } = part;
  if (text.length < 64 && PLACEHOLDER_WHOLE.test(text)) {
    if (isAnswer(part) ? !WORD_ANSWERS.test(text) : part.field === 'prompt' || part.role === 'user')
      findings.at('placeholder', part, 0, 'A placeholder instead of a text');
    return;
  }
  const inside = PLACEHOLDER_INSIDE.exec(text);
  if (inside !== null) findings.at('placeholder', part, inside.index, 'A placeholder that was not filled in');
}

function checkMarkup(part: Part, findings: Findings): void {
  const tags = part.text.match(TAG)?.length ?? 0;
  const entities = part.text.match(ENTITY)?.length ?? 0;
  if (tags + entities < 2) return;
  const first = Math.min(...[part.text.search(TAG), part.text.search(ENTITY)].filter((at) => at !== -1));
  findings.at('html', part, first, 'Leftovers of a web page (tags or entities)');
}

/** The words of a row, in the forms that search, duplicates and validation need. */
import type { TrainingExample, TrainingMessage } from '../../../daemon/protocol.ts';

/** A text of a row and where it stands in it: `messages[1].content`, `completion`. */
export interface Part {
  field: string;
  text: string;
  /** null: no chat. */
  role: string | null;
}

/** Every text of a row, in order; a message without content has none. */
export function partsOf(example: TrainingExample): Part[] {
  if (example.kind === 'completion')
    return [
      { field: 'prompt', text: example.prompt, role: null },
      { field: 'completion', text: example.completion, role: null },
    ];
  const parts: Part[] = [];
  example.messages.forEach((message, index) => {
    addMessage(parts, `messages[${index}]`, message);
  });
  if (example.kind === 'preference') {
    addMessage(parts, 'preferred', example.preferred);
    addMessage(parts, 'rejected', example.rejected);
  }
  return parts;
}

function addMessage(parts: Part[], field: string, message: TrainingMessage): void {
  const { role, content } = message;
  if (content !== null) parts.push({ field: `${field}.content`, text: content, role });
  const calls = message.tool_calls;
  if (!Array.isArray(calls)) return;
  calls.forEach((call: unknown, index) => {
    const called = (call as { function?: { name?: unknown; arguments?: unknown } } | null)?.function;
    const text = [called?.name, called?.arguments].filter((piece) => typeof piece === 'string').join(' ');
    if (text !== '') parts.push({ field: `${field}.tool_calls[${index}]`, text, role });
  });
}

const SETTING = new Set(['system', 'developer']);

/**
 * The words of a row, for search and for duplicates, joined by line feeds. System messages are left out: rows of a Datanet often share
 * one, and it would make them all alike. A row of nothing else is its system messages.
 */
export function textOf(example: TrainingExample): string {
  const parts = partsOf(example).filter((part) => part.text !== '');
  const said = parts.filter((part) => part.role === null || !SETTING.has(part.role));
  return (said.length > 0 ? said : parts).map((part) => part.text).join('\n');
}

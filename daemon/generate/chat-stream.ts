import { randomBytes } from 'node:crypto';
import type { ChatPrompt, ParsedMessage } from '../../addon/types.ts';
import type { ToolCallDelta } from '../protocol.ts';

export interface ChatDelta {
  content: string;
  reasoning: string;
  toolCalls: ToolCallDelta[];
}

/** What a model writes before its reasoning, in the templates that reason. */
const REASONING_STARTS = ['<think>', '<|channel|>', '<seed:think>', '[THINK]'];

/** Reads answers of one chat. */
export interface ChatReader {
  /** The answer must be read from its first token on, whatever it says; else only if it begins with reasoning. */
  always: boolean;
  /** The whole text so far; throws or answers null where it can't be read (yet). */
  parse(text: string, partial: boolean): ParsedMessage | null;
}

/** Does the template itself begin the reasoning? */
export function reasons(prompt: ChatPrompt): boolean {
  return REASONING_STARTS.some((start) => prompt.generationPrompt.includes(start));
}

/** A plain answer that begins as reasoning does; null: not decided yet. */
export function beginsReasoning(text: string): boolean | null {
  const trimmed = text.trimStart();
  if (trimmed === '') return null;
  for (const start of REASONING_STARTS) {
    if (trimmed.startsWith(start)) return true;
    if (start.startsWith(trimmed)) return null;
  }
  return false;
}

/**
 * Turns the growing text of an answer into deltas of content, reasoning and tool calls. The parser reads the whole text
 * each time and may change its mind about the end of it; what was sent is never contradicted: a field that no longer
 * begins with what was sent waits until it does again.
 */
export class ChatStream {
  private readonly reader: ChatReader;
  private content = '';
  private reasoning = '';
  private calls: { id: string; arguments: string }[] = [];

  constructor(reader: ChatReader) {
    this.reader = reader;
  }

  get hasToolCalls(): boolean {
    return this.calls.length > 0;
  }

  /** `text`: everything so far. `cut`: nothing more comes, though the answer is not complete. Null if there is nothing new to say. */
  update(text: string, state: 'growing' | 'cut' | 'whole'): ChatDelta | null {
    const parsed = this.parse(text, state);
    if (parsed === null) return null;
    const content = added(this.content, parsed.content);
    const reasoning = added(this.reasoning, parsed.reasoningContent);
    this.content += content;
    this.reasoning += reasoning;
    const toolCalls: ToolCallDelta[] = [];
    for (const [index, call] of parsed.toolCalls.entries()) {
      if (call.name === '') break;
      const known = this.calls[index];
      if (known === undefined) {
        const id = call.id !== '' ? call.id : `call_${randomBytes(12).toString('hex')}`;
        this.calls.push({ id, arguments: call.arguments });
        toolCalls.push({ index, id, name: call.name, arguments: call.arguments });
        continue;
      }
      const more = added(known.arguments, call.arguments);
      if (more === '') continue;
      known.arguments += more;
      toolCalls.push({ index, arguments: more });
    }
    return content === '' && reasoning === '' && toolCalls.length === 0 ? null : { content, reasoning, toolCalls };
  }

  private parse(text: string, state: 'growing' | 'cut' | 'whole'): ParsedMessage | null {
    let parsed: ParsedMessage | null = null;
    try {
      parsed = this.reader.parse(text, state !== 'whole');
    } catch {
      // Handled as what can't be read yet.
    }
    // Half an answer that can't be read yet is no error; one that has ended and can't be read is given as it is.
    if (parsed !== null || state === 'growing' || this.calls.length > 0 || this.reasoning !== '') return parsed;
    return { content: text, reasoningContent: '', toolCalls: [] };
  }
}

function added(sent: string, now: string): string {
  return now.startsWith(sent) ? now.slice(sent.length) : '';
}

/**
 * From an example to rows of tokens. The prompt's tokens are those that serving would send; what is trained is what the
 * chat template writes for the assistant's message after its generation prompt, the end of the turn included.
 */
import type { ChatPrompt, ChatPromptInput, Vocabulary } from '../../addon/types.ts';
import { AddonError } from '../../addon/types.ts';
import { plainTools } from '../generate/plain-tools.ts';
import type { TrainingExample, TrainingMessage } from './protocol.ts';

/** Tokens [from, to) of the sequence are trained: each is predicted from the one before it, so `from` is at least 1. */
export type Span = readonly [from: number, to: number];

export interface Sequence {
  tokens: Int32Array;
  spans: Span[];
}

/** Why an example cannot be trained; the message is for the person whose data it is, and quotes nothing of it. */
export class ExampleError extends Error {}

/**
 * Supervised examples become one sequence; several where the template writes earlier turns differently once others follow
 * (it drops their reasoning, say), for each answer is then learnt behind the prompt that serving would send. Preferences
 * become two, the preferred one first.
 * @throws ExampleError
 */
export function tokeniseExample(example: TrainingExample, vocabulary: Vocabulary): Sequence[] {
  try {
    switch (example.kind) {
      case 'completion':
        return [completionSequence(example.prompt, example.completion, vocabulary)];
      case 'chat':
        return chatSequences(conversation(example, vocabulary), vocabulary);
      case 'preference':
        return [example.preferred, example.rejected].map((answer) => {
          const messages = [
            ...example.messages.map((m) => ({ ...m, weight: 0 as const })),
            { ...answer, weight: 1 as const },
          ];
          const [sequence] = chatSequences(conversation({ ...example, messages }, vocabulary), vocabulary);
          return sequence as Sequence;
        });
    }
  } catch (error) {
    if (error instanceof AddonError)
      throw new ExampleError(`the model's chat template does not take this example: ${error.message}`);
    throw error;
  }
}

function completionSequence(prompt: string, completion: string, vocabulary: Vocabulary): Sequence {
  const head = vocabulary.tokenize(prompt, { special: false, addBos: vocabulary.addBos });
  const writer = new SequenceWriter(vocabulary, false);
  // As in serving, an empty prompt is the beginning of a document.
  writer.add(head.length > 0 ? head : Int32Array.of(vocabulary.bos >= 0 ? vocabulary.bos : vocabulary.eos));
  writer.text = prompt;
  const from = writer.length;
  writer.grow(prompt + completion);
  if (vocabulary.eos >= 0) writer.add(Int32Array.of(vocabulary.eos));
  writer.span(from);
  return writer.done();
}

interface Conversation {
  messages: TrainingMessage[];
  render(messages: readonly TrainingMessage[], addGenerationPrompt: boolean): ChatPrompt;
  /** The message as an answer, in the form in which serving would have it. */
  answer(message: TrainingMessage): TrainingMessage;
}

function chatSequences(chat: Conversation, vocabulary: Vocabulary): Sequence[] {
  const sequences: Sequence[] = [];
  let writer: SequenceWriter | null = null;
  for (const [index, message] of chat.messages.entries()) {
    if (message.role !== 'assistant' || message.weight === 0) continue;
    if (index === 0)
      throw new ExampleError('the first message is the assistant’s, so there is nothing that it answers');
    const before = chat.messages.slice(0, index);
    const { head, full } = headAndFull(chat, before, chat.answer(message), index);
    if (writer === null || !head.startsWith(writer.text)) {
      if (writer !== null) sequences.push(writer.done());
      writer = new SequenceWriter(vocabulary, true);
    }
    writer.grow(head);
    const from = writer.length;
    writer.grow(full);
    if (writer.length === from) throw new ExampleError(`the chat template writes nothing for message ${index + 1}`);
    writer.span(from);
  }
  if (writer === null) throw new ExampleError('it has no assistant message to learn from (or all have weight 0)');
  sequences.push(writer.done());
  return sequences;
}

/** What serving would send before the answer, and the same with the answer. */
function headAndFull(chat: Conversation, before: TrainingMessage[], answer: TrainingMessage, index: number) {
  const head = chat.render(before, true);
  const full = chat.render([...before, answer], false).prompt;
  if (full.startsWith(head.prompt)) return { head: head.prompt, full };
  // Some templates end the generation prompt with more than they write before a finished answer (an empty thought, say):
  // what both have in common stays, and the answer follows serving's prompt.
  const plain = chat.render(before, false).prompt;
  if (full.startsWith(plain)) {
    const rest = full.slice(plain.length);
    let common = 0;
    const opening = head.prompt.startsWith(plain) ? head.prompt.slice(plain.length) : head.generationPrompt;
    while (common < opening.length && opening[common] === rest[common]) common += 1;
    if (common > 0) return { head: head.prompt, full: head.prompt + rest.slice(common) };
  }
  throw new ExampleError(
    `the chat template does not write message ${index + 1} as the continuation of its own prompt, so what to learn cannot be told apart; ` +
      'leave the messages after it out, or set its weight to 0',
  );
}

/** Messages as the template gets them: as in serving, models whose template knows no tools are told of them in words. */
function conversation(
  example: {
    messages: TrainingMessage[];
    tools?: Record<string, unknown>[] | undefined;
    parallelToolCalls?: boolean | undefined;
  },
  vocabulary: Vocabulary,
): Conversation {
  const tools = example.tools ?? [];
  const parallel = example.parallelToolCalls ?? true;
  const messages = modern(example.messages);
  const render = (
    list: readonly TrainingMessage[],
    withTools: Record<string, unknown>[],
    addGenerationPrompt: boolean,
    whole = false,
  ) => {
    const plain = list.every((message) => Object.keys(message).every((key) => PLAIN_KEYS.has(key)));
    const shape = `${addGenerationPrompt} ${list.map(({ role }) => role).join(' ')}`;
    const input: ChatPromptInput = {
      messagesJson: JSON.stringify(list.map(({ weight: _, ...message }) => message)),
      toolsJson: withTools.length === 0 ? '' : JSON.stringify(withTools),
      toolChoice: withTools.length === 0 ? 'none' : 'auto',
      parallelToolCalls: parallel,
      jsonSchema: '',
      addGenerationPrompt,
    };
    const quick = plain && !whole && withTools.length === 0;
    return quick ? quickPrompt(vocabulary, shape, input) : vocabulary.chatPrompt(input);
  };
  if (tools.length === 0 || knowsTools(messages, tools, (list) => render(list, tools, true, true))) {
    return {
      messages,
      render: (list, generate) => render(list, tools, generate),
      answer: (message) => message,
    };
  }
  const inWords = (list: readonly TrainingMessage[]): TrainingMessage[] =>
    plainTools({ messages: [...list], tools, parameters: [], required: false, responseSchema: null, parallel })
      .messages as TrainingMessage[];
  return {
    messages,
    render: (list, generate) => render(inWords(list), [], generate),
    // The grammar of serving makes answers in words an object too.
    answer: (message) =>
      Array.isArray(message.tool_calls)
        ? message
        : { ...message, content: JSON.stringify({ response: message.content ?? '' }) },
  };
}

const PLAIN_KEYS: ReadonlySet<string> = new Set(['role', 'content', 'weight']);
/** Whether the template alone writes what serving would have it write, for conversations of a shape. */
const quickShapes = new WeakMap<Vocabulary, Map<string, boolean>>();
const SHAPES_MAX = 4096;

/**
 * Some families of models get more than their template from libllama, so the first conversation of each shape is rendered
 * both ways; where both are the same, the template alone is enough from then on.
 */
function quickPrompt(vocabulary: Vocabulary, shape: string, input: ChatPromptInput): ChatPrompt {
  let shapes = quickShapes.get(vocabulary);
  if (shapes === undefined) {
    shapes = new Map();
    quickShapes.set(vocabulary, shapes);
  }
  const known = shapes.get(shape);
  if (known === true) return vocabulary.chatPrompt({ ...input, promptOnly: true });
  const whole = vocabulary.chatPrompt(input);
  if (known === undefined && shapes.size < SHAPES_MAX) {
    shapes.set(shape, vocabulary.chatPrompt({ ...input, promptOnly: true }).prompt === whole.prompt);
  }
  return whole;
}

/** As in serving: the template knows tools if it has a grammar for their calls, or writes their names into the prompt. */
function knowsTools(
  messages: readonly TrainingMessage[],
  tools: readonly Record<string, unknown>[],
  render: (messages: TrainingMessage[]) => ChatPrompt,
): boolean {
  const first = messages.findIndex(({ role }) => role === 'assistant');
  const chat = render(messages.slice(0, first < 1 ? messages.length : first));
  if (chat.grammar !== '' || chat.grammarTriggers.length > 0) return true;
  const name = (tools[0] as { function?: { name?: string } }).function?.name ?? '';
  return (
    name !== '' && chat.prompt.includes(JSON.stringify(name).slice(1, -1)) && !JSON.stringify(messages).includes(name)
  );
}

/** The forms that OpenAI has replaced, in those that replaced them. */
function modern(messages: readonly TrainingMessage[]): TrainingMessage[] {
  let calls = 0;
  return messages.map((message) => {
    if (message.role === 'function') return { ...message, role: 'tool', tool_call_id: `call_${calls}` };
    if (message.role !== 'assistant' || typeof message.function_call !== 'object' || message.function_call === null)
      return message;
    const { function_call: called, ...rest } = message;
    calls += 1;
    return { ...rest, tool_calls: [{ id: `call_${calls}`, type: 'function', function: called }] } as TrainingMessage;
  });
}

/** Builds one sequence from texts of which each continues the one before. */
class SequenceWriter {
  text = '';
  private tokens: number[] = [];
  private readonly spans: Span[] = [];
  private readonly vocabulary: Vocabulary;
  private readonly special: boolean;

  constructor(vocabulary: Vocabulary, special: boolean) {
    this.vocabulary = vocabulary;
    this.special = special;
  }

  get length(): number {
    return this.tokens.length;
  }

  add(tokens: Int32Array): void {
    for (const token of tokens) this.tokens.push(token);
  }

  /**
   * Up to `text`: with the tokens of the whole, where they begin with those that are here (so that nothing depends on where
   * the text was cut); else what is new is tokenised by itself, since what is here cannot change any more.
   */
  grow(text: string): void {
    const { special } = this;
    const whole = this.vocabulary.tokenize(text, { special, addBos: this.vocabulary.addBos });
    if (whole.length >= this.tokens.length && this.tokens.every((token, i) => token === whole[i])) {
      this.add(whole.subarray(this.tokens.length));
    } else {
      this.add(this.vocabulary.tokenize(text.slice(this.text.length), { special, addBos: false }));
    }
    this.text = text;
  }

  span(from: number): void {
    this.spans.push([Math.max(1, from), this.tokens.length]);
  }

  done(): Sequence {
    return { tokens: Int32Array.from(this.tokens), spans: this.spans };
  }
}

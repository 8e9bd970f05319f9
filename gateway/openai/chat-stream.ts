/**
 * Engine events → chat.completion.chunk, as text ready for the socket.
 * The part of a chunk that never changes is built once per stream; per token only its own text goes through JSON.stringify.
 */
import type { FinishReason, GenerateEvent, TokenLogprob, Usage } from '../../daemon/protocol.ts';
import type { ToolStyle } from './chat-request.ts';

export interface AnswerHead {
  id: string;
  created: number;
  model: string;
  systemFingerprint: string;
}

export function usageOf(usage: Usage) {
  return {
    prompt_tokens: usage.promptTokens,
    completion_tokens: usage.completionTokens,
    total_tokens: usage.promptTokens + usage.completionTokens,
    prompt_tokens_details: { cached_tokens: usage.cachedTokens, audio_tokens: 0 },
    completion_tokens_details: {
      reasoning_tokens: 0,
      audio_tokens: 0,
      accepted_prediction_tokens: 0,
      rejected_prediction_tokens: 0,
    },
  };
}

export function chatLogprobs(tokens: TokenLogprob[]) {
  return {
    content: tokens.map(({ token, logprob, bytes, top }) => ({ token, logprob, bytes, top_logprobs: top })),
    refusal: null,
  };
}

/** A forced function ends with `stop`, as at OpenAI; otherwise calls end with `tool_calls` (legacy: `function_call`). */
export function finishReasonOf(reason: FinishReason, style: ToolStyle): string {
  if (reason !== 'tool_calls') return reason;
  if (style.forced) return 'stop';
  return style.legacy ? 'function_call' : 'tool_calls';
}

export class ChatChunkEncoder {
  readonly #prefix: string;
  readonly #suffix: string;
  readonly #style: ToolStyle;
  readonly #head: string;
  readonly #includeUsage: boolean;
  readonly #opened: boolean[] = [];
  #finished = 0;

  constructor(head: AnswerHead, options: { style: ToolStyle; includeUsage: boolean }) {
    this.#head = `{"id":${JSON.stringify(head.id)},"object":"chat.completion.chunk","created":${head.created},"model":${JSON.stringify(head.model)},"system_fingerprint":${JSON.stringify(head.systemFingerprint)},"choices":[`;
    this.#prefix = `data: ${this.#head}{"index":`;
    this.#suffix = options.includeUsage ? '}],"usage":null}\n\n' : '}]}\n\n';
    this.#includeUsage = options.includeUsage;
    this.#style = options.style;
  }

  /** Choices that have had their finish_reason. */
  get finished(): number {
    return this.#finished;
  }

  #chunk(index: number, delta: string, logprobs: string, finish: string): string {
    return `${this.#prefix}${index},"delta":{${delta}},"logprobs":${logprobs},"finish_reason":${finish}${this.#suffix}`;
  }

  encode(event: GenerateEvent): string {
    if (event.type === 'delta') return this.#delta(event);
    if (event.type === 'finish') {
      this.#finished += 1;
      const finish = `"${finishReasonOf(event.reason, this.#style)}"`;
      return this.#open(event.choice, '""') + this.#chunk(event.choice, '', 'null', finish);
    }
    return '';
  }

  /** The first delta of a choice carries the role; `content` is null where a tool call comes first. */
  #open(choice: number, content: '""' | 'null'): string {
    if (this.#opened[choice] === true) return '';
    this.#opened[choice] = true;
    return this.#chunk(choice, `"role":"assistant","content":${content},"refusal":null`, 'null', 'null');
  }

  #delta(event: Extract<GenerateEvent, { type: 'delta' }>): string {
    const { choice } = event;
    let delta = '';
    if (event.content !== undefined) delta = `"content":${JSON.stringify(event.content)}`;
    if (event.reasoning !== undefined)
      delta += `${delta === '' ? '' : ','}"reasoning_content":${JSON.stringify(event.reasoning)}`;
    if (event.toolCalls !== undefined && event.toolCalls.length > 0)
      delta += (delta === '' ? '' : ',') + this.#toolCalls(event.toolCalls);
    const logprobs = event.logprobs === undefined ? 'null' : JSON.stringify(chatLogprobs(event.logprobs));
    const opening = this.#open(choice, event.content === undefined && event.toolCalls !== undefined ? 'null' : '""');
    if (delta === '' && logprobs === 'null') return opening;
    return opening + this.#chunk(choice, delta, logprobs, 'null');
  }

  #toolCalls(calls: NonNullable<Extract<GenerateEvent, { type: 'delta' }>['toolCalls']>): string {
    if (this.#style.legacy) {
      const [call] = calls;
      return `"function_call":${JSON.stringify({ name: call?.name, arguments: call?.arguments ?? '' })}`;
    }
    const deltas = calls.map((call) => ({
      index: call.index,
      ...(call.id === undefined ? {} : { id: call.id, type: 'function' }),
      function: { ...(call.name === undefined ? {} : { name: call.name }), arguments: call.arguments },
    }));
    return `"tool_calls":${JSON.stringify(deltas)}`;
  }

  /** The usage chunk, where it was asked for, and the end mark. */
  end(usage: Usage): string {
    const last = this.#includeUsage ? `data: ${this.#head}],"usage":${JSON.stringify(usageOf(usage))}}\n\n` : '';
    return `${last}data: [DONE]\n\n`;
  }
}

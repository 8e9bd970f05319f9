/** Engine events → one chat.completion object. */
import type { FinishReason, GenerateEvent, TokenLogprob, Usage } from '../../daemon/protocol.ts';
import type { ToolStyle } from './chat-request.ts';
import { type AnswerHead, chatLogprobs, finishReasonOf, usageOf } from './chat-stream.ts';

interface Choice {
  content: string;
  hasContent: boolean;
  reasoning: string;
  toolCalls: { id: string; name: string; arguments: string }[];
  logprobs: TokenLogprob[] | null;
  reason: FinishReason | null;
}

export class ChatAnswerBuilder {
  readonly #choices: Choice[];
  readonly #style: ToolStyle;

  constructor(n: number, options: { style: ToolStyle; logprobs: boolean }) {
    this.#style = options.style;
    this.#choices = Array.from({ length: n }, () => ({
      content: '',
      hasContent: false,
      reasoning: '',
      toolCalls: [],
      logprobs: options.logprobs ? [] : null,
      reason: null,
    }));
  }

  get finished(): number {
    return this.#choices.filter((choice) => choice.reason !== null).length;
  }

  add(event: GenerateEvent): void {
    if (event.type !== 'delta' && event.type !== 'finish') return;
    const choice = this.#choices[event.choice];
    if (choice === undefined) return;
    if (event.type === 'finish') {
      choice.reason = event.reason;
      return;
    }
    if (event.content !== undefined) {
      choice.content += event.content;
      choice.hasContent = true;
    }
    if (event.reasoning !== undefined) choice.reasoning += event.reasoning;
    for (const call of event.toolCalls ?? []) {
      choice.toolCalls[call.index] ??= { id: '', name: '', arguments: '' };
      const whole = choice.toolCalls[call.index] as { id: string; name: string; arguments: string };
      if (call.id !== undefined) whole.id = call.id;
      if (call.name !== undefined) whole.name = call.name;
      whole.arguments += call.arguments;
    }
    if (event.logprobs !== undefined) choice.logprobs?.push(...event.logprobs);
  }

  build(head: AnswerHead, usage: Usage) {
    return {
      id: head.id,
      object: 'chat.completion' as const,
      created: head.created,
      model: head.model,
      choices: this.#choices.map((choice, index) => ({
        index,
        message: this.#message(choice),
        logprobs: choice.logprobs === null ? null : chatLogprobs(choice.logprobs),
        finish_reason: finishReasonOf(choice.reason ?? 'stop', this.#style),
      })),
      usage: usageOf(usage),
      service_tier: 'default',
      system_fingerprint: head.systemFingerprint,
    };
  }

  #message(choice: Choice) {
    const calls = choice.toolCalls.filter((call) => call !== undefined);
    const [first] = calls;
    return {
      role: 'assistant' as const,
      content: calls.length > 0 && choice.content === '' ? null : choice.content,
      refusal: null,
      annotations: [],
      ...(choice.reasoning === '' ? {} : { reasoning_content: choice.reasoning }),
      ...(first === undefined
        ? {}
        : this.#style.legacy
          ? { function_call: { name: first.name, arguments: first.arguments } }
          : {
              tool_calls: calls.map((call) => ({
                id: call.id,
                type: 'function',
                function: { name: call.name, arguments: call.arguments },
              })),
            }),
    };
  }
}

/** Question–answer pairs about a chunk of a document, written by a served model and kept only where the chunk bears them out. */
import { z } from 'zod';
import type { Chunk } from './document.ts';

export interface QuestionRequest {
  messages: { role: 'system' | 'user'; content: string }[];
  /** As OpenAI's `response_format`. */
  responseFormat: { type: 'json_schema'; json_schema: { name: string; strict: true; schema: Record<string, unknown> } };
  maxTokens: number;
  temperature: number;
  seed: number;
}
export interface QuestionOptions {
  perChunk: number;
  generate: (request: QuestionRequest) => Promise<string>;
}
export interface QuestionAnswer {
  question: string;
  answer: string;
}

const answers = z.object({ pairs: z.array(z.object({ question: z.string(), answer: z.string() })) });

export async function questionsOf(chunk: Chunk, options: QuestionOptions): Promise<QuestionAnswer[]> {
  const { perChunk, generate } = options;
  const pair = {
    type: 'object',
    properties: { question: { type: 'string' }, answer: { type: 'string' } },
    required: ['question', 'answer'],
    additionalProperties: false,
  };
  const text = await generate({
    messages: [
      { role: 'system', content: 'You write questions about a text and answer them from the text alone.' },
      { role: 'user', content: `Text:\n${chunk.text}\n\nWrite ${perChunk} questions with their answers as JSON.` },
    ],
    responseFormat: {
      type: 'json_schema',
      json_schema: {
        name: 'pairs',
        strict: true,
        schema: {
          type: 'object',
          properties: { pairs: { type: 'array', items: pair } },
          required: ['pairs'],
          additionalProperties: false,
        },
      },
    },
    maxTokens: 160 * perChunk,
    temperature: 0.7,
    seed: 1,
  });
  const parsed = answers.safeParse(JSON.parse(text));
  return parsed.success ? parsed.data.pairs.slice(0, perChunk) : [];
}

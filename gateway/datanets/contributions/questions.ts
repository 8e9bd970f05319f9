/**
 * Questions about a document, written and answered by a served model: each is a chat completion like any other, reserved, receipted and
 * paid by the contributor's key. What was written about a chunk is kept at once, so that a contribution that is begun again after a crash asks (and
 * pays) only for the chunks that were being asked about: four at most.
 */
import { createHash } from 'node:crypto';
import type { TrainingExample } from '../../../daemon/protocol.ts';
import { principalOf } from '../../auth/key-store.ts';
import { canAccess, type Principal } from '../../auth/scopes.ts';
import type { ContributionRow } from '../../db/datanet-schema.ts';
import { ApiError } from '../../errors.ts';
import { randomId } from '../../http/ids.ts';
import { parseWith } from '../../http/validate.ts';
import { limits } from '../../limits.ts';
import { chatRequest, translateChat } from '../../openai/chat-request.ts';
import { tokensEstimate } from '../../openai/estimate.ts';
import { Generation } from '../../openai/generation.ts';
import { resolveFor } from '../../openai/run.ts';
import type { Services } from '../../services.ts';
import { type QuestionRequest, questionsOf } from '../documents/questions.ts';
import type { Chunk } from '../documents/read.ts';
import { type ContributionRows, fileIdOf } from './contribution-rows.ts';
import type { Ingester } from './ingester.ts';
import { checkStop, type GeneratedSource, IngestFailure, IngestStopped } from './messages.ts';

interface Deps {
  rows: ContributionRows;
  ingester: Ingester;
  storage: { path(id: string): string };
}

/** @throws IngestFailure when the model or the budget fails; IngestStopped when it is taken back meanwhile. */
export async function writeQuestions(
  services: Services,
  deps: Deps,
  row: ContributionRow,
  signal: AbortSignal,
): Promise<GeneratedSource> {
  const { model, perChunk } = row.options.questions as { model: string; perChunk: number };
  const chunks = await deps.ingester.chunks(
    {
      path: deps.storage.path(fileIdOf(row.id)),
      filename: row.filename,
      chunkCharacters: row.options.chunkCharacters ?? null,
      chunksMax: limits.questionChunksMax,
    },
    signal,
  );
  const examples: GeneratedSource['examples'] = [];
  const kept = await deps.rows.questions(row.id);
  let next = 0;
  let done = 0;
  const ask = async () => {
    while (next < chunks.length) {
      const index = next;
      next += 1;
      const chunk = chunks[index] as Chunk;
      const chunkHash = sha256Hex(chunk.text);
      const before = kept.get(index);
      let pairs = before?.chunkHash === chunkHash ? before.pairs : null;
      if (pairs === null) {
        const generate = (request: QuestionRequest) => generated(services, row.keyId, model, request, signal);
        pairs = await questionsOf(chunk, { perChunk, generate });
        await deps.rows.keepQuestions(row.id, index, { chunkHash, pairs });
      }
      for (const { question, answer } of pairs) examples.push({ line: index + 1, example: chatOf(question, answer) });
      done += 1;
      if (!(await deps.rows.progress(row.id, { done, total: chunks.length, unit: 'chunks' })))
        throw new IngestStopped();
    }
  };
  // One that fails ends the others: they look at `next`.
  const fail = (error: unknown) => {
    next = chunks.length;
    throw error;
  };
  const askers = Array.from({ length: Math.min(limits.questionsAtOnce, chunks.length) }, () => ask().catch(fail));
  const failed = (await Promise.allSettled(askers)).find((outcome) => outcome.status === 'rejected');
  if (failed !== undefined) throw failureOf(failed.reason, model);
  // In the order of the document, whichever answer came first.
  examples.sort((a, b) => a.line - b.line);
  if (examples.length === 0) {
    const message = `The model \`${model}\` wrote no question about this document that the text bears out. Try another model, or contribute questions of your own.`;
    throw new IngestFailure('no_questions', message);
  }
  return { type: 'generated', model, examples };
}

function sha256Hex(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}

function chatOf(question: string, answer: string): TrainingExample {
  return {
    kind: 'chat',
    messages: [
      { role: 'user', content: question },
      { role: 'assistant', content: answer },
    ],
  };
}

function failureOf(reason: unknown, model: string): unknown {
  if (!(reason instanceof ApiError) || reason.code === 'client_disconnected') return reason;
  return new IngestFailure(
    reason.code ?? 'generation_failed',
    `Questions could not be generated with \`${model}\`: ${reason.message}`,
  );
}

/** Who pays, as they are now: a key that was revoked meanwhile pays for nothing more. */
async function payer(services: Services, keyId: string): Promise<Principal> {
  const key = await services.keys.find(keyId);
  const user = key?.userId == null ? null : await services.people.users.find(key.userId);
  const usable = key !== null && key.revokedAt === null && (key.expiresAt === null || key.expiresAt > services.now());
  const principal = usable ? await principalOf(key, user, sha256Hex) : null;
  if (principal === null || !canAccess(principal, 'inference'))
    throw new IngestFailure(
      'key_not_valid',
      'The key that pays for generating questions is revoked, expired or may not use models.',
    );
  return principal;
}

const ATTEMPTS_MAX = 5;
const WAIT_MS_MAX = 5_000;

async function generated(
  services: Services,
  keyId: string,
  model: string,
  request: QuestionRequest,
  signal: AbortSignal,
): Promise<string> {
  for (let attempt = 1; ; attempt++) {
    checkStop(signal);
    try {
      return await once(services, await payer(services, keyId), model, request, signal);
    } catch (error) {
      checkStop(signal);
      if (!isPassing(error) || attempt >= ATTEMPTS_MAX) throw error;
      const told = Number(error.headers['retry-after-ms'] ?? 1000 * Number(error.headers['retry-after'] ?? attempt));
      await pause(Math.min(told, WAIT_MS_MAX), signal);
      // A full limit is not the engine's failure: it is waited for as long as it takes.
      if (error.status === 429) attempt -= 1;
    }
  }
}

function isPassing(error: unknown): error is ApiError {
  return (
    error instanceof ApiError &&
    [429, 502, 503].includes(error.status) &&
    error.code !== 'insufficient_quota' &&
    error.headers['x-should-retry'] !== 'false'
  );
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    const hurry = () => {
      clearTimeout(timer);
      resolve();
    };
    signal.addEventListener('abort', hurry, { once: true });
  });
}

/** As POST /v1/chat/completions does it. */
async function once(
  services: Services,
  principal: Principal,
  name: string,
  request: QuestionRequest,
  signal: AbortSignal,
): Promise<string> {
  const model = await resolveFor(services, principal, name);
  const body = parseWith(chatRequest, {
    model: name,
    messages: request.messages,
    response_format: request.responseFormat,
    max_completion_tokens: Math.min(request.maxTokens, model.base.contextTokens),
    temperature: request.temperature,
    seed: request.seed,
  });
  const { engine } = translateChat(body);
  const admission = services.limiter.admit(principal, tokensEstimate(engine.prompt, engine.maxTokens, 1));
  const generation = new Generation(services, { requestId: randomId(), principal, model, engine });
  const cancel = () => generation.cancel();
  signal.addEventListener('abort', cancel, { once: true });
  try {
    await generation.open(Number.POSITIVE_INFINITY);
    let text = '';
    for (let events = await generation.next(); events !== null; events = await generation.next()) {
      for (const event of events) if (event.type === 'delta' && event.choice === 0) text += event.content ?? '';
    }
    return text;
  } catch (error) {
    generation.cancel();
    throw error;
  } finally {
    signal.removeEventListener('abort', cancel);
    admission.release(generation.tokensUsed());
  }
}

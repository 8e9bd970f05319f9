/** What the k6 scripts share: where the server is, prompts, how an answer is read. Settings come from the environment. */
import { check, fail } from 'k6';
import http from 'k6/http';
import { Rate, Trend } from 'k6/metrics';
import { uniformSource } from './schedule.js';

export const url = __ENV.MODELFACTORY_URL || 'http://127.0.0.1:8787';
const key = __ENV.MODELFACTORY_KEY;
/** Adapters are named PREFIX0, PREFIX1, …; `node --import tsx loadtest/bench/adapters.ts 8` imports random ones. */
export const prefix = __ENV.ADAPTER_PREFIX || 'bench-';
/** First tokens later than this miss the objective. 6 s is S-LoRA's; set your own with SLO_MS. */
export const sloMs = Number(__ENV.SLO_MS || 6000);

/**
 * Time from sending the request to the first token. k6 reads an answer as a whole, so a stream's first token cannot be
 * timed at the client; it is put together from the answer's own `timings` (time in the engine until the first token).
 * Where the server tells none, the time to the first byte stands in, and `first_token_known` counts that.
 */
export const firstToken = new Trend('first_token_ms', true);
export const firstTokenKnown = new Rate('first_token_known');
/** Milliseconds per token after the first. */
export const timePerToken = new Trend('time_per_output_token_ms', true);
export const slo = new Rate('slo_first_token');
/** 1 − (t / SLO)² below the SLO, else 0: S-LoRA's user satisfaction. */
export const satisfaction = new Trend('satisfaction');
export const tokensOut = new Trend('completion_tokens');

export function params(tags = {}) {
  return {
    headers: { 'content-type': 'application/json', ...(key ? { authorization: `Bearer ${key}` } : {}) },
    tags,
    timeout: '300s',
  };
}

/** Fails the test at once, with what to do, when there is nothing to test against. */
export function requireServer() {
  if (!key) fail('set MODELFACTORY_KEY to an API key (the admin key does)');
  const health = http.get(`${url}/health`);
  if (health.status !== 200)
    fail(`${url}/health answers ${health.status}; start the server first or set MODELFACTORY_URL`);
}

/** @returns {{ base: string, adapters: string[] }} the base model, and the adapters of our prefix in the order of their numbers */
export function listModels() {
  const response = http.get(`${url}/v1/models`, params());
  if (response.status !== 200) fail(`/v1/models answers ${response.status}: ${response.body}`);
  /** @type {string[]} */
  const ids = /** @type {any} */ (response.json()).data.map((/** @type {{ id: string }} */ m) => m.id);
  const order = (/** @type {string} */ id) => Number(id.slice(prefix.length));
  const adapters = ids.filter((id) => id.startsWith(prefix)).sort((a, b) => order(a) - order(b));
  const base = __ENV.BASE_MODEL || ids.find((id) => !id.startsWith(prefix));
  if (!base) fail('no base model in /v1/models; name it in BASE_MODEL');
  return { base: /** @type {string} */ (base), adapters };
}

const WORDS =
  'the city river house music water school story family night power game light road north winter summer bread paper stone'.split(
    ' ',
  );

/**
 * A prompt of about so many tokens. The seed makes it different from the others, so that no prefix cache helps.
 * @param {number} tokens
 * @param {number} seed
 */
export function prompt(tokens, seed) {
  const uniform = uniformSource(seed);
  return Array.from({ length: tokens }, () => WORDS[Math.floor(uniform() * WORDS.length)]).join(' ');
}

/**
 * Sends one streamed completion, checks it, and records its metrics tagged by adapter.
 * @param {{ model: string, adapter: string, inputTokens: number, outputTokens: number, seed: number }} request
 */
export function complete(request) {
  const tags = { adapter: request.adapter };
  const body = {
    model: request.model,
    prompt: prompt(request.inputTokens, request.seed),
    max_tokens: request.outputTokens,
    ignore_eos: true,
    temperature: 0,
    stream: true,
    stream_options: { include_usage: true },
  };
  const response = http.post(`${url}/v1/completions`, JSON.stringify(body), params(tags));
  const answer = readStream(typeof response.body === 'string' ? response.body : '');
  const good = check(
    response,
    {
      'status 200': (r) => r.status === 200,
      'stream complete': () => answer.done && !answer.error,
      'as many tokens as asked for': () => answer.completionTokens === request.outputTokens,
    },
    tags,
  );
  // A broken answer counts as a missed objective, never as a fast one.
  slo.add(good && first(response, answer) < sloMs, tags);
  if (!good) return;
  const firstMs = first(response, answer);
  firstToken.add(firstMs, tags);
  firstTokenKnown.add(answer.firstTokenMs !== null);
  satisfaction.add(firstMs < sloMs ? 1 - (firstMs / sloMs) ** 2 : 0, tags);
  tokensOut.add(answer.completionTokens, tags);
  if (answer.completionTokens > 1)
    timePerToken.add((response.timings.duration - firstMs) / (answer.completionTokens - 1), tags);
}

/**
 * @param {import('k6/http').RefinedResponse<any>} response
 * @param {ReturnType<typeof readStream>} answer
 */
function first(response, answer) {
  return answer.firstTokenMs ?? response.timings.waiting;
}

/**
 * Reads a whole SSE body.
 * @param {string} body
 */
export function readStream(body) {
  const answer = { done: false, error: false, completionTokens: 0, firstTokenMs: /** @type {number | null} */ (null) };
  for (const line of body.split('\n')) {
    if (!line.startsWith('data:')) continue;
    const data = line.slice(5).trim();
    if (data === '[DONE]') {
      answer.done = true;
      continue;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) answer.error = true;
    if (chunk.usage) answer.completionTokens = chunk.usage.completion_tokens;
    const timings = chunk.timings;
    if (timings) answer.firstTokenMs = timings.first_token_ms ?? timings.firstTokenMs ?? timings.prompt_ms ?? null;
  }
  return answer;
}

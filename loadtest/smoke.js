/** A minute's proof that a running server does what clients rely on. */
import { check } from 'k6';
import http from 'k6/http';
import { complete, listModels, params, requireServer, url } from './common.js';

export const options = {
  vus: 1,
  iterations: 1,
  thresholds: { checks: ['rate==1'] },
};

export function setup() {
  requireServer();
  return listModels();
}

/** @param {{ base: string, adapters: string[] }} models */
export default function smoke(models) {
  const chat = http.post(
    `${url}/v1/chat/completions`,
    JSON.stringify({ model: models.base, messages: [{ role: 'user', content: 'Say hello.' }], max_tokens: 16 }),
    params(),
  );
  check(chat, {
    'chat: status 200': (r) => r.status === 200,
    'chat: object': (r) => r.status === 200 && r.json('object') === 'chat.completion',
    'chat: usage adds up': (r) => {
      const usage = /** @type {any} */ (r.status === 200 ? r.json('usage') : null);
      return usage !== null && usage.total_tokens === usage.prompt_tokens + usage.completion_tokens;
    },
    'chat: receipt id': (r) => r.headers['X-Receipt-Id'] !== undefined,
    'chat: request id': (r) => r.headers['X-Request-Id'] !== undefined,
  });

  complete({ model: models.base, adapter: 'base', inputTokens: 20, outputTokens: 8, seed: 1 });
  const adapter = models.adapters[0];
  if (adapter !== undefined) complete({ model: adapter, adapter, inputTokens: 20, outputTokens: 8, seed: 2 });

  const expected = http.expectedStatuses(401, 404, 400);
  const stranger = http.get(`${url}/v1/models`, {
    headers: { authorization: 'Bearer nobody' },
    responseCallback: expected,
  });
  check(stranger, { 'unknown key: 401': (r) => r.status === 401 });
  const missing = http.post(
    `${url}/v1/chat/completions`,
    JSON.stringify({ model: 'no-such-model', messages: [{ role: 'user', content: 'x' }] }),
    { ...params(), responseCallback: expected },
  );
  check(missing, { 'unknown model: 404': (r) => r.status === 404 });
  const malformed = http.post(`${url}/v1/chat/completions`, '{"model":', { ...params(), responseCallback: expected });
  check(malformed, { 'malformed JSON: 400': (r) => r.status === 400 });
}

/** Secrets never reach the log, wherever a client puts them; nor do prompts; nor does the client learn of our insides. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createLog } from '../../gateway/log.ts';
import { DAEMON_TOKEN, sayHello } from '../support/scripted-daemon.ts';
import { CHAT, type Rig, startRig } from './rig.ts';

let rig: Rig;
beforeAll(async () => {
  rig = await startRig();
});
afterAll(() => rig.close());

const PROMPT = 'the-secret-prompt-of-the-user';

test('a key in odd places leaves no trace in the log; prompts and answers neither', async () => {
  const { credential } = await rig.key();
  const key = credential;
  const auth = { authorization: `Bearer ${key}` };
  const attempts: (() => Promise<Response>)[] = [
    () => rig.call('POST', '/v1/chat/completions', { ...CHAT, messages: [{ role: 'user', content: PROMPT }] }, auth),
    () =>
      rig.call(
        'POST',
        '/v1/chat/completions',
        { ...CHAT, stream: true, messages: [{ role: 'user', content: PROMPT }] },
        auth,
      ),
    () => rig.call('POST', '/v1/chat/completions', { ...CHAT, model: key }, auth),
    () => rig.call('GET', `/v1/models/${key}`, undefined, auth),
    () => rig.call('GET', `/v1/models?api_key=${key}`, undefined, auth),
    () => rig.call('GET', `/${key}`, undefined, auth),
    () => rig.call('GET', '/v1/models', undefined, { authorization: key }),
    () => rig.call('GET', '/v1/models', undefined, { authorization: `Basic ${key}` }),
    () => rig.call('GET', '/v1/models', undefined, { ...auth, 'x-request-id': key }),
    () =>
      rig.call('GET', '/v1/models', undefined, {
        ...auth,
        'x-api-key': key,
        cookie: key,
        referer: key,
        'user-agent': key,
      }),
    () => rig.call(key.slice(0, 20).replace(/[^A-Z]/gi, 'X'), '/v1/models', undefined, auth),
    () => rig.call('POST', '/v1/chat/completions', `{"model": "${key}`, auth),
    () => rig.call('POST', '/api/keys', { name: key }),
    () => rig.call('POST', '/api/adapters', { name: 'x', source: `/${key}` }),
    () => rig.call('GET', `/v1/receipts/${key}`, undefined, auth),
    () => rig.call('GET', `/log/tile/${key}`, undefined, auth),
  ];
  for (const attempt of attempts) await (await attempt()).text();
  rig.daemon.script = (_, line) =>
    line.emit({
      type: 'error',
      error: {
        status: 500,
        code: 'x',
        type: 'server_error',
        message: `failed for ${key} with ${DAEMON_TOKEN}`,
        param: null,
      },
    });
  await (await rig.call('POST', '/v1/chat/completions', CHAT, auth)).text();
  await (await rig.call('POST', '/v1/chat/completions', { ...CHAT, stream: true }, auth)).text();
  rig.daemon.script = sayHello;

  expect(rig.logLines.length).toBeGreaterThanOrEqual(attempts.length);
  const log = rig.logLines.join('');
  expect(log).not.toContain(key);
  expect(log).not.toContain(key.slice(3, 30));
  expect(log).not.toContain(rig.admin.slice(3, 30));
  expect(log).not.toContain(DAEMON_TOKEN);
  expect(log).not.toContain(PROMPT);
  expect(log).not.toContain('Hello world');
  for (const line of rig.logLines) expect(() => JSON.parse(line)).not.toThrow();
});

test('the log line of a request says who, what, how much and how long', async () => {
  const { id, credential } = await rig.key();
  rig.logLines.length = 0;
  await (
    await rig.call(
      'POST',
      '/v1/chat/completions',
      { ...CHAT, stream: true },
      { authorization: `Bearer ${credential}`, 'x-request-id': 'mine-1' },
    )
  ).text();
  expect(rig.logLines).toHaveLength(1);
  expect(JSON.parse(rig.logLines[0] as string)).toMatchObject({
    requestId: 'mine-1',
    method: 'POST',
    route: '/v1/chat/completions',
    status: 200,
    keyId: id,
    model: 'tiny-base',
    operation: 'chat',
    stream: true,
    promptTokens: 9,
    completionTokens: 3,
    costMicros: 15,
    durationMs: expect.any(Number),
    firstTokenMs: expect.any(Number),
  });
});

test('known fields are redacted whatever they hold', () => {
  const lines: string[] = [];
  const log = createLog({
    level: 'info',
    secrets: ['hunter2hunter2'],
    destination: { write: (line) => void lines.push(line) },
  });
  log.info(
    {
      authorization: 'abc',
      req: { headers: { authorization: 'abc' } },
      deep: { token: 'abc', password: 'abc' },
      note: 'it was hunter2hunter2',
    },
    'x',
  );
  expect(lines.join('')).not.toMatch(/abc|hunter2/);
});

describe('a defect of ours', () => {
  test('is a 500 in OpenAI’s shape that tells the client nothing, and the log everything', async () => {
    rig.logLines.length = 0;
    const { pool } = rig.app.services;
    const models = pool.models;
    pool.models = () => {
      throw new Error('boom at /srv/secret/path');
    };
    const response = await rig.call('GET', '/v1/models');
    pool.models = models;
    const text = await response.text();
    expect(response.status).toBe(500);
    expect(JSON.parse(text)).toEqual({
      error: { message: expect.any(String), type: 'server_error', param: null, code: 'internal_error' },
    });
    expect(text).not.toMatch(/boom|secret|\.ts/);
    expect(rig.logLines.join('')).toContain('boom');
  });
});

/** Promises at the edges of the daemon's HTTP face. */
import { afterEach, expect, it } from 'vitest';
import { events, generateBody, type Rig, startRig, TOKEN } from './engine/rig.ts';

let rig: Rig | null = null;
afterEach(async () => {
  await rig?.close();
  rig = null;
});

it('tells a request that still waits for its receipt from one that has none', async () => {
  rig = await startRig({});
  let open = () => {};
  rig.receipts.gate = new Promise((resolve) => {
    open = resolve;
  });
  const body = generateBody();
  const { url } = rig;
  const settlement = () =>
    fetch(`${url}/receipts/by-request/${body.requestId}`, { headers: { authorization: `Bearer ${TOKEN}` } });
  const response = await rig.post('/generate', body);
  expect((await settlement()).status).toBe(409);
  open();
  await events(response);
  // The rig has no receipt routes: past the guard there is nothing.
  expect((await settlement()).status).toBe(404);
});

it.each([
  ['a text', '/generate', { prompt: { kind: 'text', text: 'x'.repeat(3000) } }, 'prompt'],
  ['tokens', '/generate', { prompt: { kind: 'tokens', tokens: new Array(3000).fill(1) } }, 'prompt'],
  ['an input', '/embed', { inputs: [{ kind: 'text', text: 'x'.repeat(3000) }] }, 'input'],
  ['an input of tokens', '/embed', { inputs: [{ kind: 'tokens', tokens: new Array(3000).fill(1) }] }, 'input'],
])('names the field that is too long: %s', async (_, path, extra, param) => {
  rig = await startRig({});
  const { requestId, callerHash, adapter, price } = generateBody() as Record<string, unknown>;
  const body = path === '/embed' ? { requestId, callerHash, adapter, price, ...extra } : generateBody(extra);
  const response = await rig.post(path, body);
  expect(await response.json()).toMatchObject({ error: { status: 400, code: 'context_length_exceeded', param } });
});

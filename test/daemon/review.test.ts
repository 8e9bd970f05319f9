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

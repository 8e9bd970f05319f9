import { afterAll, beforeAll, expect, test } from 'vitest';
import { errorOf, type Rig, startRig } from '../rig.ts';

let rig: Rig;
beforeAll(async () => {
  rig = await startRig();
});
afterAll(() => rig.close());

test('a session may do what its user’s role allows', async () => {
  const user = await rig.user({ role: 'consumer' });
  const session = await user.session();
  expect((await session.call('GET', '/v1/models')).status).toBe(200);
  const refused = await session.call('GET', '/v1/files');
  expect([refused.status, (await errorOf(refused)).code]).toEqual([403, 'insufficient_scope']);
});

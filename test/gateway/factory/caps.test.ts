/** What one caller may take of what all share: requests per minute on every route, and event streams. */
import { afterAll, beforeAll, expect, test } from 'vitest';
import { limits } from '../../../gateway/limits.ts';
import { errorOf } from '../rig.ts';
import { chatLines, type FactoryRig, startFactoryRig } from './rig.ts';

let rig: FactoryRig;
let now = 1_800_000_000_000;
beforeAll(async () => {
  rig = await startFactoryRig({ now: () => now });
});
afterAll(() => rig?.close());

test('files, jobs, checkpoints and aliases count among the requests of a minute, one each', async () => {
  const file = await rig.upload('a.jsonl', chatLines(12));
  const job = await rig.openai.fineTuning.jobs.create({ model: 'tiny-base', training_file: file });
  const paths = [
    '/v1/files',
    `/v1/files/${file}`,
    `/v1/files/${file}/content`,
    '/v1/fine_tuning/jobs',
    `/v1/fine_tuning/jobs/${job.id}`,
    `/v1/fine_tuning/jobs/${job.id}/events`,
    `/v1/fine_tuning/jobs/${job.id}/checkpoints`,
    '/api/evaluations',
    '/api/aliases',
  ];
  const { credential } = await rig.key({ scopes: ['admin'], requestsPerMinute: paths.length });
  const get = (path: string) => rig.call('GET', path, undefined, { authorization: `Bearer ${credential}` });
  for (const [index, path] of paths.entries()) {
    const answer = await get(path);
    expect(answer.status, path).toBe(200);
    await answer.arrayBuffer();
    expect(answer.headers.get('x-ratelimit-remaining-requests'), path).toBe(String(paths.length - 1 - index));
  }
  const refused = await get('/v1/files');
  expect(refused.status).toBe(429);
  expect(refused.headers.get('retry-after')).toMatch(/^\d+$/);
  expect(await errorOf(refused)).toMatchObject({ type: 'rate_limit_error', code: 'rate_limit_exceeded' });
  now += 60_000;
  expect((await get('/v1/files')).status).toBe(200);
});

test('one caller has so many event streams open and no more; others are not held up, and a stream that ends makes room', async () => {
  rig.training.stepMs = null;
  const [greedy, other] = [await rig.user(), await rig.user()];
  const streamsOf = async (user: typeof greedy) => {
    const openai = rig.client(user.credential);
    const file = await rig.upload('a.jsonl', chatLines(12), openai);
    const { id } = await openai.fineTuning.jobs.create({ model: 'tiny-base', training_file: file });
    return () => user.call('GET', `/v1/fine_tuning/jobs/${id}/events?stream=true`);
  };
  const [open, openOther] = [await streamsOf(greedy), await streamsOf(other)];
  const streams = await Promise.all(Array.from({ length: limits.eventStreamsPerOwnerMax }, open));
  expect(streams.map(({ status }) => status)).toEqual(streams.map(() => 200));
  const refused = await open();
  expect(refused.status).toBe(429);
  expect(await errorOf(refused)).toMatchObject({ type: 'rate_limit_error', code: 'event_stream_limit_exceeded' });
  const others = await openOther();
  expect(others.status).toBe(200);
  await streams.pop()?.body?.cancel();
  const again = await expect.poll(open).toMatchObject({ status: 200 });
  void again;
  for (const stream of [...streams, others]) await stream.body?.cancel();
});

import fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { durationOf, RateLimiter, TokenBucket } from '../../gateway/auth/rate-limit.ts';
import type { Principal } from '../../gateway/auth/scopes.ts';
import { ApiError } from '../../gateway/errors.ts';
import { CHAT, errorOf, type Rig, startRig } from './rig.ts';

const principal = (limits: Partial<Principal>): Principal => ({
  keyId: 'key_1',
  name: '',
  userId: null,
  role: null,
  ownerId: 'key_1',
  sessionId: null,
  callerHash: '',
  scopes: new Set(['inference']),
  models: null,
  requestsPerMinute: 60,
  tokensPerMinute: 1000,
  concurrency: 100,
  budgetMicros: null,
  userLimits: null,
  expiresAt: null,
  ...limits,
});

function refusal(attempt: () => unknown): ApiError {
  try {
    attempt();
  } catch (error) {
    if (error instanceof ApiError) return error;
  }
  throw new Error('was not refused');
}

describe('token bucket', () => {
  test('refills exactly, to the millisecond', () => {
    const bucket = new TokenBucket(60, 0);
    bucket.take(60);
    expect(bucket.canTake(1, 999)).toBe(false);
    expect(bucket.canTake(1, 1000)).toBe(true);
    expect(bucket.waitMs(2, 1000)).toBe(1000);
    expect(bucket.resetMs(1000)).toBe(59_000);
    expect(bucket.waitMs(61, 1000)).toBe(Number.POSITIVE_INFINITY);
  });

  test('whatever the order of asking, no more is granted than one minute’s worth plus what time brought', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 1000 }),
        fc.array(fc.record({ wait: fc.nat(5000), take: fc.integer({ min: 1, max: 50 }) }), { maxLength: 200 }),
        (perMinute, steps) => {
          const bucket = new TokenBucket(perMinute, 0);
          let now = 0;
          let granted = 0;
          for (const { wait, take } of steps) {
            now += wait;
            if (bucket.canTake(take, now)) {
              bucket.take(take);
              granted += take;
            } else if (take <= perMinute) {
              const ready = now + bucket.waitMs(take, now);
              expect(bucket.canTake(take, now)).toBe(false);
              const probe = Object.assign(new TokenBucket(perMinute, 0), {});
              expect(probe.canTake(take, ready)).toBe(true);
            }
            expect(granted).toBeLessThanOrEqual(perMinute + (now * perMinute) / 60_000);
          }
        },
      ),
    );
  });
});

describe('limiter, with the clock in our hand', () => {
  test('requests per minute: the 61st waits a second', () => {
    let now = 0;
    const limiter = new RateLimiter(() => now);
    for (let index = 0; index < 60; index++) limiter.admit(principal({}), 1).release(1);
    const error = refusal(() => limiter.admit(principal({}), 1));
    expect([error.status, error.code, error.headers['retry-after-ms'], error.headers['retry-after']]).toEqual([
      429,
      'rate_limit_exceeded',
      '1000',
      '1',
    ]);
    expect(error.headers['x-ratelimit-remaining-requests']).toBe('0');
    expect(error.headers['x-ratelimit-reset-requests']).toBe('1m0s');
    now = 1000;
    limiter.admit(principal({}), 1);
  });

  test('tokens per minute: the estimate is charged at once and corrected at the end, only once', () => {
    let now = 0;
    const limiter = new RateLimiter(() => now);
    const admission = limiter.admit(principal({}), 900);
    expect(refusal(() => limiter.admit(principal({}), 200)).code).toBe('rate_limit_exceeded');
    admission.release(100);
    admission.release(0);
    expect(limiter.admit(principal({}), 900).headers['x-ratelimit-remaining-tokens']).toBe('0');
    now = 60_000;
    expect(limiter.admit(principal({}), 0).headers['x-ratelimit-remaining-tokens']).toBe('1000');
  });

  test('an answer longer than estimated leaves a debt that time pays', () => {
    let now = 0;
    const limiter = new RateLimiter(() => now);
    limiter.admit(principal({}), 0).release(2000);
    now = 60_000;
    expect(refusal(() => limiter.admit(principal({}), 1)).headers['retry-after-ms']).toBe('60');
    now = 60_060;
    limiter.admit(principal({}), 1);
  });

  test('a request larger than the limit is told not to retry', () => {
    const error = refusal(() => new RateLimiter(() => 0).admit(principal({}), 1001));
    expect(error.headers).toMatchObject({ 'x-should-retry': 'false' });
    expect(error.headers).not.toHaveProperty('retry-after');
  });

  test('a refused request costs nothing', () => {
    const limiter = new RateLimiter(() => 0);
    for (let index = 0; index < 100; index++) refusal(() => limiter.admit(principal({}), 5000));
    expect(limiter.admit(principal({}), 1000).headers['x-ratelimit-remaining-requests']).toBe('59');
  });

  test('keys do not share', () => {
    const limiter = new RateLimiter(() => 0);
    limiter.admit(principal({ concurrency: 1 }), 1);
    expect(refusal(() => limiter.admit(principal({ concurrency: 1 }), 1)).code).toBe('concurrency_limit_exceeded');
    limiter.admit(principal({ concurrency: 1, keyId: 'key_2' }), 1);
  });

  test('a raised limit counts at once and keeps what was used', () => {
    const limiter = new RateLimiter(() => 0);
    for (let index = 0; index < 60; index++) limiter.admit(principal({}), 0);
    expect(limiter.admit(principal({ requestsPerMinute: 70 }), 0).headers['x-ratelimit-remaining-requests']).toBe('9');
  });

  test.each([
    [0, '0ms'],
    [12, '12ms'],
    [1000, '1s'],
    [59_001, '1m0s'],
    [360_000, '6m0s'],
    [3_723_000, '1h2m3s'],
  ])('%i ms is written %s', (milliseconds, text) => expect(durationOf(milliseconds)).toBe(text));
});

describe('over HTTP', () => {
  let rig: Rig;
  afterEach(() => rig.close());

  test('429 in OpenAI’s shape with headers, and no request reaches the daemon', async () => {
    let now = 1_700_000_000_000;
    rig = await startRig({ now: () => now });
    const { credential } = await rig.key({ requestsPerMinute: 2 });
    const call = () => rig.call('POST', '/v1/chat/completions', CHAT, { authorization: `Bearer ${credential}` });
    expect([(await call()).status, (await call()).status]).toEqual([200, 200]);
    const refused = await call();
    expect([
      refused.status,
      refused.headers.get('retry-after'),
      refused.headers.get('x-ratelimit-limit-requests'),
    ]).toEqual([429, '30', '2']);
    expect(await errorOf(refused)).toMatchObject({
      type: 'rate_limit_error',
      code: 'rate_limit_exceeded',
      param: null,
    });
    expect(rig.daemon.requests).toHaveLength(2);
    now += 30_000;
    expect((await call()).status).toBe(200);
  });

  test('streams count their tokens too', async () => {
    let now = 1_700_000_000_000;
    rig = await startRig({ now: () => now });
    const { credential } = await rig.key({ tokensPerMinute: 30 });
    const call = () =>
      rig.call(
        'POST',
        '/v1/chat/completions',
        { ...CHAT, stream: true, max_tokens: 3 },
        { authorization: `Bearer ${credential}` },
      );
    await (await call()).text();
    await (await call()).text();
    const refused = await call();
    expect([refused.status, refused.headers.get('x-ratelimit-remaining-tokens')]).toEqual([429, '6']);
    now += 60_000;
    expect((await call()).status).toBe(200);
  });
});

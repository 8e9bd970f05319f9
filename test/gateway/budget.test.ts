/** Money: whole micro-units, two phases; what is spent and reserved together never passes the budget, and every end is exact. */

import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { BudgetLedger } from '../../gateway/auth/budget.ts';
import { promptTokensBound } from '../../gateway/openai/estimate.ts';
import { endingTogether } from '../support/scripted-daemon.ts';
import { CHAT, errorOf, type Rig, startRig } from './rig.ts';

let rig: Rig;
beforeAll(async () => {
  rig = await startRig();
});
afterAll(() => rig.close());

const usage = { promptTokens: 1, cachedTokens: 0, completionTokens: 1 };

describe('the ledger', () => {
  type Step = { kind: 'reserve' | 'post' | 'void' | 'expire'; request: number; amount: number; fraction: number };
  const step = fc.record<Step>({
    kind: fc.constantFrom('reserve', 'reserve', 'post', 'void', 'expire'),
    request: fc.nat(7),
    amount: fc.nat(60),
    fraction: fc.double({ min: 0, max: 1, noNaN: true }),
  });
  let run = 0;

  test('follows its model step by step, however requests interleave, repeat and come late', async () => {
    await fc.assert(
      fc.asyncProperty(fc.nat(200), fc.array(step, { maxLength: 40 }), async (budget, steps) => {
        const { id } = await rig.key({ budgetMicros: budget });
        const { ledger } = rig.app.services;
        const prefix = `p${run++}`;
        const states = new Map<number, { state: 'open' | 'posted' | 'void' | 'expired'; amount: number }>();
        let spent = 0;
        let late = 0;
        const reserved = () =>
          [...states.values()].filter(({ state }) => state === 'open').reduce((sum, { amount }) => sum + amount, 0);
        for (const { kind, request, amount, fraction } of steps) {
          const held = states.get(request);
          const name = `${prefix}-${request}`;
          if (kind === 'reserve') {
            // A request id is drawn at random and never used twice.
            if (held !== undefined) continue;
            const fits = spent + reserved() + amount <= budget;
            expect(await ledger.reserve(name, id, amount)).toBe(fits);
            if (fits) states.set(request, { state: 'open', amount });
          } else if (kind === 'post') {
            const cost = Math.floor((held?.amount ?? 10) * fraction);
            await ledger.post(name, { costMicros: cost, usage, model: 'm' });
            if (held?.state === 'open' || held?.state === 'expired') {
              if (held.state === 'expired') late += cost;
              held.state = 'posted';
              spent += cost;
            }
          } else {
            await (kind === 'void' ? ledger.void(name) : ledger.expire(name));
            if (held?.state === 'open') held.state = kind === 'void' ? 'void' : 'expired';
          }
          expect(await rig.money(id)).toEqual({ spent, reserved: reserved() });
          // Only a cost that came after its reservation had expired can pass the budget, and by no more than itself.
          expect(spent + reserved()).toBeLessThanOrEqual(budget + late);
        }
      }),
      { numRuns: 60 },
    );
  });

  test('a hundred requests at once cannot together take more than there is', async () => {
    const { id } = await rig.key({ budgetMicros: 1000 });
    const { ledger } = rig.app.services;
    const granted = await Promise.all(
      Array.from({ length: 100 }, (_, index) => ledger.reserve(`race-${index}`, id, 30)),
    );
    expect(granted.filter(Boolean)).toHaveLength(33);
    expect(await rig.money(id)).toEqual({ spent: 0, reserved: 990 });
  });

  test('the usage of a day adds up, per key and model, once per request', async () => {
    const { id } = await rig.key();
    const ledger = new BudgetLedger(rig.database.db.$client, () => Date.UTC(2026, 0, 2, 23, 59));
    for (const request of ['u1', 'u2', 'u2']) {
      await ledger.reserve(request, id, 10).catch(() => {});
      await ledger.post(request, {
        costMicros: 7,
        usage: { promptTokens: 3, cachedTokens: 0, completionTokens: 4 },
        model: 'legal',
      });
    }
    const { rows } = await rig.database.db.$client.execute({
      sql: 'SELECT * FROM usage_daily WHERE key_id = ?',
      args: [id],
    });
    expect(rows).toMatchObject([
      { day: '2026-01-02', model: 'legal', requests: 2, prompt_tokens: 6, completion_tokens: 8, cost_micros: 14 },
    ]);
  });
});

describe('requests', () => {
  const ask = (credential: string, extra: object = {}) =>
    rig.call(
      'POST',
      '/v1/chat/completions',
      { ...CHAT, max_tokens: 10, ...extra },
      { authorization: `Bearer ${credential}` },
    );

  test('the actual cost is posted, streamed or not, on every endpoint', async () => {
    const { id, credential } = await rig.key({ budgetMicros: 1_000_000 });
    const headers = { authorization: `Bearer ${credential}` };
    let spent = 0;
    const expectSpent = async (more: number) => {
      spent += more;
      expect(await rig.money(id)).toEqual({ spent, reserved: 0 });
    };
    await (await ask(credential)).text();
    await expectSpent(9 + 2 * 3);
    await (await ask(credential, { stream: true, n: 2 })).text();
    await expectSpent(9 + 2 * 6);
    await (await rig.call('POST', '/v1/completions', { model: 'tiny-base', prompt: ['a', 'b'] }, headers)).text();
    await expectSpent(2 * (9 + 2 * 3));
    await (await rig.call('POST', '/v1/embeddings', { model: 'tiny-base', input: ['a', 'b'] }, headers)).text();
    await expectSpent(8);
  });

  test('a budget that does not cover the request: 429 insufficient_quota, not to be retried, nothing computed', async () => {
    const { credential } = await rig.key({ budgetMicros: 28 });
    const before = rig.daemon.requests.length;
    // 9 + 2 × 10 = 29 once the prompt is counted exactly.
    const refused = await ask(credential);
    expect([refused.status, refused.headers.get('x-should-retry')]).toEqual([429, 'false']);
    expect(await errorOf(refused)).toMatchObject({ type: 'insufficient_quota', code: 'insufficient_quota' });
    expect(rig.daemon.requests.length).toBe(before);
  });

  test('before refusing, the prompt is counted exactly: what just fits is served', async () => {
    const { id, credential } = await rig.key({ budgetMicros: 29 });
    expect((await ask(credential)).status).toBe(200);
    expect(await rig.money(id)).toEqual({ spent: 15, reserved: 0 });
    expect((await ask(credential, { max_tokens: 1 })).status).toBe(200);
    expect((await ask(credential, { max_tokens: 1 })).status).toBe(429);
  });

  test('concurrent streams together stay within the budget', async () => {
    const { id, credential } = await rig.key({ budgetMicros: 100 });
    // Nobody is settled before everybody has asked.
    const { script, open } = endingTogether();
    rig.daemon.script = script;
    const answers = await Promise.all(Array.from({ length: 10 }, () => ask(credential, { stream: true })));
    expect(await rig.money(id)).toEqual({ spent: 0, reserved: 87 });
    open();
    await Promise.all(answers.map((answer) => answer.text()));
    expect(answers.filter(({ status }) => status === 200)).toHaveLength(3);
    expect(answers.filter(({ status }) => status === 429)).toHaveLength(7);
    expect(await rig.money(id)).toEqual({ spent: 45, reserved: 0 });
  });

  test('the bound on prompt tokens is an upper bound: no fewer than the bytes, no more than the context', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'grapheme', maxLength: 200 }), (text) => {
        const bytes = Buffer.byteLength(text);
        expect(promptTokensBound({ kind: 'text', text }, 1e6)).toBeGreaterThanOrEqual(bytes);
        expect(
          promptTokensBound({ kind: 'chat', messages: [{ role: 'user', content: text }] }, 1e6),
        ).toBeGreaterThanOrEqual(bytes);
        expect(promptTokensBound({ kind: 'text', text }, 100)).toBeLessThanOrEqual(100);
      }),
    );
  });
});

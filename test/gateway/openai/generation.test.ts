import { describe, expect, it } from 'vitest';
import type { GenerateEvent } from '../../../daemon/protocol.ts';
import { Generation } from '../../../gateway/openai/generation.ts';

/** The parts of the gateway that a generation talks to; the daemon answers one event and then nothing. */
function rig() {
  const settled: string[] = [];
  const begin: GenerateEvent = { type: 'delta', choice: 0, content: 'a' };
  const events = [[begin]];
  const client = { generate: async () => source, health: async () => ({}) };
  const source = { next: () => (events.length > 0 ? Promise.resolve(events.shift()) : new Promise(() => {})) };
  const services = {
    now: () => 0,
    price: { inputMicrosPerMillion: 1, outputMicrosPerMillion: 1, currency: 'USD' },
    pool: {
      route: () => [client],
      firstReachable: async (_: unknown, call: (one: typeof client) => unknown) => ({
        client,
        value: await call(client),
      }),
    },
    ledger: { reserve: async () => true, void: async () => {}, post: async () => {} },
    settler: { settle: (id: string) => settled.push(id) },
    log: { error: () => {} },
  };
  const generation = new Generation(services as never, {
    requestId: 'r1',
    principal: { keyId: 'k', callerHash: 'a'.repeat(64) } as never,
    model: { id: 'm', adapter: null, base: { contextTokens: 64 } } as never,
    engine: { prompt: { kind: 'text', text: 'x' }, maxTokens: 4 } as never,
  });
  return { generation, settled };
}

describe('a client that leaves', () => {
  it('between two reads is told apart from an answer that has ended, and its cost is looked up once', async () => {
    const { generation, settled } = rig();
    await generation.open(Number.POSITIVE_INFINITY);
    await generation.next();
    generation.cancel();
    await expect(generation.next()).rejects.toMatchObject({ code: 'client_disconnected' });
    generation.cancel();
    expect(settled).toEqual(['r1']);
  });
});

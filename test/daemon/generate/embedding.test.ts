import { afterEach, describe, expect, it } from 'vitest';
import { EMBED_INPUTS_TOGETHER, ENGINE_LIMITS } from '../../../daemon/limits.ts';
import { CALLER, PRICE, type Rig, startRig } from '../engine/rig.ts';

let rig: Rig;
afterEach(() => rig.close());

const body = (count: number, requestId = 'e1') => ({
  requestId,
  callerHash: CALLER,
  adapter: null,
  inputs: Array.from({ length: count }, (_, i) => ({ kind: 'tokens', tokens: [1 + (i % 7)] })),
  price: PRICE,
});

describe('embeddings of a list', () => {
  it('as long as a request may have are computed in turn, in order, though the queue holds fewer', async () => {
    rig = await startRig();
    expect(2048).toBeGreaterThan(ENGINE_LIMITS.waitingMax);
    const response = await rig.post('/embed', body(2048));
    expect(response.status).toBe(200);
    const { embeddings, promptTokens } = (await response.json()) as { embeddings: string[]; promptTokens: number };
    expect(embeddings).toHaveLength(2048);
    expect(promptTokens).toBe(2048);
    for (let i = 7; i < 2048; i += 251) expect(embeddings[i]).toBe(embeddings[i % 7]);
    expect(rig.receipts.receipts.size).toBe(1);
  });

  it('leave room in the queue for others', async () => {
    rig = await startRig({ waitingMax: EMBED_INPUTS_TOGETHER + 1 });
    const long = rig.post('/embed', body(1024));
    const short = await rig.post('/embed', { ...body(1, 'e2'), callerHash: 'b'.repeat(64) });
    expect(short.status).toBe(200);
    expect((await long).status).toBe(200);
  });
});

/** Adapters made by HF PEFT, with what PEFT in float32 answers. The files lie beside a development checkout only. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Engine, loadModel, type Model } from '../../addon/index.ts';
import { AdapterRegistry } from '../../daemon/adapters/registry.ts';
import { argmax, logSumExp, mean } from '../../loadtest/bench/stats.ts';
import { defaultModelPath, SKIP_REASON } from '../support/model.ts';
import { ENGINE, forward, temporaryFolder } from './rig.ts';

const FIXTURES = join(import.meta.dirname, '..', '..', '..', 'shared', 'fixtures');
const modelPath = await defaultModelPath();
const reason = !existsSync(FIXTURES) ? 'the PEFT fixtures are not beside this checkout' : modelPath ? '' : SKIP_REASON;
if (reason) console.info(`skipped: ${reason}`);

interface Expected {
  prompt_tokens: number[];
  completion_tokens: number[];
  /** Per completion token the five best [token, log-probability]. */
  top5: [number, number][][];
}

/** Mean |Δ log-prob| of the expected token; libllama on the same file reaches 0.030 (base) and 0.022 (e2e). */
const CASES: [name: string, limit: number][] = [
  ['base', 0.05],
  ['e2e', 0.05],
  ['alpaca', 0.06],
  ['rslora-qv-r4', 0.06],
  ['patterns-attn', 0.06],
  ['bf16-all-r2', 0.06],
  ['layers-subset-r8', 0.06],
];

describe.skipIf(reason !== '')('SmolLM2 answers as HF PEFT does', () => {
  const folder = temporaryFolder();
  let model: Model;
  let engine: Engine;
  let registry: AdapterRegistry;
  beforeAll(async () => {
    model = loadModel({ path: modelPath as string, device: 'cpu' });
    engine = model.createEngine(ENGINE);
    registry = await AdapterRegistry.open({ root: folder.path, base: model.info });
  });
  afterAll(() => {
    engine.close();
    model.close();
    folder.remove();
  });

  function measure(name: string, slot: number): { top1: number; difference: number } {
    const file = join(FIXTURES, 'expected', `${name}.json`);
    const differences: number[] = [];
    let agree = 0;
    for (const one of JSON.parse(readFileSync(file, 'utf8')) as Expected[]) {
      const rows = forward(engine, Int32Array.from([...one.prompt_tokens, ...one.completion_tokens]), { slot });
      one.completion_tokens.forEach((token, i) => {
        const row = rows[one.prompt_tokens.length - 1 + i] as Float32Array;
        const [best, logprob] = (one.top5[i] as [number, number][])[0] as [number, number];
        expect(best).toBe(token);
        if (argmax(row) === token) agree++;
        differences.push(Math.abs((row[token] as number) - logSumExp(row) - logprob));
      });
    }
    return { top1: agree / differences.length, difference: mean(differences) };
  }

  test.each(CASES)('%s: top-1 at least 0.98, mean |Δ log-prob| at most %f', async (name, limit) => {
    let slot = -1;
    if (name !== 'base') {
      await registry.add({ name, source: join(FIXTURES, 'adapters', name) });
      const { pairs, file } = await registry.handle(name);
      engine.setSlot(0, await model.buildAdapter(readFileSync(file), pairs));
      slot = 0;
    }
    const { top1, difference } = measure(name, slot);
    console.info(`${name}: top-1 ${top1.toFixed(4)}, mean |Δ log-prob| ${difference.toFixed(4)}`);
    expect(top1).toBeGreaterThanOrEqual(0.98);
    expect(difference).toBeLessThanOrEqual(limit);
  });

  test('with the adapter left out the same comparison fails by far', () => {
    const { top1, difference } = measure('e2e', -1);
    expect(top1).toBeLessThan(0.8);
    expect(difference).toBeGreaterThan(0.5);
  });
});

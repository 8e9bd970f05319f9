/**
 * A process of its own, because kernels and devices are chosen once per process:
 * `mixed-logits.ts OUT {"device", "exact", "models": [{path, …}]}` writes, for every model, the logits of a mixed batch of
 * adapters and base rows as float32, and prints one JSON line of facts.
 */
import { writeFileSync } from 'node:fs';
import { type DeviceChoice, kernelVariant, listDevices, loadModel } from '../../../addon/index.ts';
import type { TinyModel } from '../../support/tiny-models.ts';
import { batchOf, ENGINE, putAdapter, randomTokens, rowsOf } from '../rig.ts';

interface Order {
  device: DeviceChoice;
  exact: boolean;
  models: TinyModel[];
  /** Only the large step (`prefill`) or only the small ones (`decode`): the software Vulkan driver does not survive both. */
  part?: 'prefill' | 'decode';
}

const [out, given] = process.argv.slice(2) as [string, string];
const order = JSON.parse(given) as Order;
const chunks: Buffer[] = [];
const devices: string[] = [];
for (const tiny of order.models) {
  const model = loadModel({ path: tiny.path, device: order.device, exact: order.exact });
  devices.push(model.info.device.name);
  // Cells that are no multiple of anything, so that padding is tried too.
  const engine = model.createEngine({ ...ENGINE, kvCells: 301, slots: 4, slotRankMax: 16, kvType: 'f16' });
  await putAdapter(model, engine, 0, tiny, { rank: 1, seed: 1, strength: 40 });
  await putAdapter(model, engine, 1, tiny, { rank: 7, seed: 2, targets: ['attn_q', 'attn_v', 'ffn_down'] });
  await putAdapter(model, engine, 2, tiny, { rank: 16, seed: 3, strength: 10 });
  const take = (parts: Parameters<typeof batchOf>[0]): void => {
    for (const row of rowsOf(engine.step(batchOf(parts)))) chunks.push(Buffer.from(row.slice().buffer));
  };
  const tokens = (count: number, seed: number) => randomTokens(count, tiny.vocabulary, seed);
  if (order.part !== 'decode') {
    // Prompts of different lengths under different adapters; only some rows give logits.
    take([
      { sequence: 0, slot: 0, tokens: tokens(33, 1), position: 0, outputs: 'last' },
      { sequence: 1, slot: -1, tokens: tokens(21, 2), position: 0 },
      { sequence: 2, slot: 1, tokens: tokens(5, 3), position: 0 },
      { sequence: 3, slot: 2, tokens: tokens(40, 4), position: 0, outputs: 'last' },
    ]);
  }
  if (order.part !== 'prefill') {
    for (let s = 0; s < 4; s++) engine.trimSequence(s, 0);
    // What is decoded below follows a prompt read without adapters. Then one sequence is cancelled, its slot given to
    // another adapter, and the others decode.
    take([{ sequence: 3, tokens: tokens(40, 4), position: 0, outputs: 'last' }]);
    take([{ sequence: 1, tokens: tokens(21, 2), position: 0, outputs: 'last' }]);
    engine.shareSequence(1, 2, 5);
    await putAdapter(model, engine, 0, tiny, { rank: 3, seed: 9, strength: 30 });
    for (let i = 0; i < 4; i++) {
      take([
        { sequence: 3, slot: 2, tokens: tokens(1, 50 + i), position: 40 + i },
        { sequence: 1, slot: -1, tokens: tokens(1, 60 + i), position: 21 + i },
        { sequence: 0, slot: 0, tokens: tokens(3, 70 + i), position: 3 * i },
        { sequence: 2, slot: 1, tokens: tokens(1, 80 + i), position: 5 + i },
      ]);
    }
    // Base rows only, then one row alone.
    take([{ sequence: 1, slot: -1, tokens: tokens(3, 90), position: 25 }]);
    take([{ sequence: 3, slot: 2, tokens: tokens(1, 91), position: 44 }]);
  }
  engine.close();
  model.close();
}
const automatic = loadModel({ path: order.models[0]?.path as string, device: 'auto' });
writeFileSync(out, Buffer.concat(chunks));
console.log(
  JSON.stringify({ kernels: kernelVariant(), devices, automatic: automatic.info.device.name, listed: listDevices() }),
);
automatic.close();

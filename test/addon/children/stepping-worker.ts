/** A worker thread that opens the model, builds an adapter and steps; tells a digest of its logits, then goes on stepping. */
import { createHash } from 'node:crypto';
import { parentPort, workerData } from 'node:worker_threads';
import { loadModel } from '../../../addon/index.ts';
import type { TinyModel } from '../../support/tiny-models.ts';
import { batchOf, ENGINE, loraFor, randomTokens } from '../rig.ts';

const { tiny, rounds } = workerData as { tiny: TinyModel; rounds: number };
const rssBefore = process.memoryUsage().rss;
const model = loadModel({ path: tiny.path, device: 'cpu' });
const rssAfter = process.memoryUsage().rss;
const engine = model.createEngine(ENGINE);
const { file, pairs } = loraFor(tiny, { rank: 4, seed: 2 });
engine.setSlot(0, await model.buildAdapter(file, pairs));
for (let i = 0; i < rounds; i++) {
  engine.trimSequence(0, 0);
  const tokens = randomTokens(30, tiny.vocabulary, 4);
  const { logits } = engine.step(batchOf([{ sequence: 0, slot: 0, tokens, position: 0 }]));
  const digest = createHash('sha256')
    .update(logits as Float32Array)
    .digest('hex');
  if (i === Math.min(rounds, 2) - 1) parentPort?.postMessage({ digest, rssBefore, rssAfter });
}
// Stays, with everything open, until it is terminated.
setInterval(() => undefined, 1000);

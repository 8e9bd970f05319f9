/**
 * `lives.ts unload|loads|workers|terminate|exit MODEL`: what becomes of memory and threads. Prints one JSON line; `exit` ends the
 * process with everything still open and a worker in the middle of a step.
 */
import { writeFileSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { type Engine, loadModel } from '../../../addon/index.ts';
import type { TinyModel } from '../../support/tiny-models.ts';
import { batchOf, ENGINE, loraFor, randomTokens } from '../rig.ts';

const [what, given] = process.argv.slice(2) as [string, string];
const tiny = JSON.parse(given) as TinyModel;
const rss = (): number => {
  for (let i = 0; i < 3; i++) globalThis.gc?.();
  return process.memoryUsage().rss;
};
const step = (engine: Engine): void => {
  engine.trimSequence(0, 0);
  engine.step(batchOf([{ sequence: 0, slot: 0, tokens: randomTokens(40, tiny.vocabulary, 1), position: 0 }]));
};

async function unload(): Promise<object> {
  const sizes: number[] = [];
  const external: number[] = [];
  const { file, pairs } = loraFor(tiny, { rank: 16, seed: 1 });
  for (let round = 0; round < 24; round++) {
    const model = loadModel({ path: tiny.path, device: 'cpu' });
    const engine = model.createEngine(ENGINE);
    const image = await model.buildAdapter(file, pairs);
    engine.setSlot(0, image);
    // Every other image is left to the garbage collector; the slot keeps it alive either way.
    if (round % 2 === 0) image.release();
    step(engine);
    engine.clearSlot(0);
    engine.close();
    model.close();
    sizes.push(rss());
    external.push(process.memoryUsage().external);
  }
  return { sizes, external, imageBytes: file.length / 2 };
}

/** Adapters that come and go, as when the host cache is full; then many at once, as when it fills up and empties. */
async function loads(): Promise<object> {
  const model = loadModel({ path: tiny.path, device: 'cpu' });
  const { file, pairs } = loraFor(tiny, { rank: 64, seed: 1 });
  const path = `${tiny.path}.adapter`;
  writeFileSync(path, file);
  const load = () => model.loadAdapter(path, pairs);
  const { bytes: imageBytes } = await load().then((image) => {
    image.release();
    return image;
  });
  const sizes: number[] = [];
  for (let i = 0; i < 60; i++) {
    (await load()).release();
    sizes.push(rss());
  }
  const many = await Promise.all(Array.from({ length: 30 }, load));
  const full = rss();
  for (const image of many) image.release();
  const empty = rss();
  model.close();
  return { sizes, full, empty, imageBytes };
}

const WORKER = new URL('./stepping-worker-boot.mjs', import.meta.url);
const start = (rounds: number): Worker => new Worker(WORKER, { workerData: { tiny, rounds } });
const answer = (worker: Worker): Promise<{ digest: string; rssBefore: number; rssAfter: number }> =>
  new Promise((done, fail) => {
    worker.once('message', done);
    worker.once('error', fail);
  });

async function main(): Promise<void> {
  if (what === 'unload') {
    console.log(JSON.stringify(await unload()));
  } else if (what === 'loads') {
    console.log(JSON.stringify(await loads()));
  } else if (what === 'workers') {
    const [first, second] = [start(3), start(3)];
    const answers = await Promise.all([answer(first), answer(second)]);
    // The first still holds the weights: a third must not load them again.
    const third = start(3);
    answers.push(await answer(third));
    await Promise.all([first.terminate(), second.terminate(), third.terminate()]);
    console.log(JSON.stringify({ answers }));
  } else if (what === 'terminate') {
    for (let i = 0; i < 6; i++) {
      const worker = start(1_000_000);
      await new Promise((done) => worker.once('message', done));
      await new Promise((done) => setTimeout(done, i * 7));
      await worker.terminate();
    }
    const last = start(2);
    const { digest } = await answer(last);
    await last.terminate();
    console.log(JSON.stringify({ digest }));
  } else if (what === 'exit') {
    const model = loadModel({ path: tiny.path, device: 'cpu' });
    const engine = model.createEngine(ENGINE);
    const { file, pairs } = loraFor(tiny, { rank: 16, seed: 1 });
    engine.setSlot(0, await model.buildAdapter(file, pairs));
    step(engine);
    void model.buildAdapter(file, pairs);
    const worker = start(1_000_000);
    await new Promise((done) => worker.once('message', done));
    console.log(JSON.stringify({ left: 'open' }));
    process.exit(0);
  }
}
await main();

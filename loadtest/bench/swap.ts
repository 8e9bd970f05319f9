/**
 * `npm run bench -- swap`: how long an adapter takes from host RAM or disk into a slot, and what seven running streams notice
 * while the eighth slot changes its adapter all the time. The first part drives the engine alone; the second goes
 * through the product, with requests that force the daemon to swap.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { performance } from 'node:perf_hooks';
import { type AdapterImage, type Engine, loadModel, type Model } from '../../addon/index.ts';
import { loadAdapterImage } from '../../daemon/adapters/load-image.ts';
import { localFiles } from '../../daemon/adapters/source.ts';
import { AdapterStore, type AdapterSummary } from '../../daemon/adapters/store.ts';
import { importAdapter, randomAdapter, SMOLLM2_135M, writeRandomAdapters } from './adapters.ts';
import { createLimitedKey, startOurs } from './processes.ts';
import { promptSource } from './prompts.ts';
import { number, type Report } from './report.ts';
import { groupResult, stream } from './sse.ts';
import { median, quantile, summarize } from './stats.ts';

export interface SwapOptions {
  modelPath: string;
  rounds: number;
  /** Host → slot swaps to time. */
  swaps: number;
  /** Disk → slot loads to time. */
  loads: number;
  /** Decode steps per round and condition. */
  steps: number;
  rank: number;
  adapters: number;
  outputTokens: number;
  threads: number;
}
export const SWAP_DEFAULTS = {
  rounds: 3,
  swaps: 1000,
  loads: 200,
  steps: 200,
  rank: 8,
  /** More than the daemon has slots, so that each request of the swapper finds its adapter evicted. */
  adapters: 48,
  outputTokens: 128,
  threads: 2,
} as const;

const STREAMS = 7;
const SWAPPED_SLOT = STREAMS;
const KV_CELLS = 8192;
const PROMPT_WORDS = 60;

interface EnginePart {
  hostMs: number[];
  diskWarmMs: number[];
  /** Of which: finding where the weights lie, reading the file and building the image, putting it into the slot. */
  diskParts: { findMs: number[]; buildMs: number[]; setMs: number[] };
  /** The same while nothing was let go of yet, so that each image takes memory that was never touched. */
  diskFreshMs: number[];
  diskColdMs: number[];
  stepsMs: { still: number[]; swapping: number[] };
  fileMiB: number;
  imageMiB: number;
}

/** Tells the kernel to forget the cached pages of a file; false where that is not possible. */
function dropFromPageCache(file: string): boolean {
  if (process.platform !== 'linux') return false;
  return spawnSync('dd', [`if=${file}`, 'iflag=nocache', 'count=0'], { stdio: 'ignore' }).status === 0;
}

/** As the daemon does it for an adapter that nobody asked for lately: where the weights lie, then the weights, then the slot. */
async function load(model: Model, engine: Engine, store: AdapterStore, known: AdapterSummary) {
  const begin = performance.now();
  // The registry has the summaries of all adapters in memory.
  const handle = await store.handle(known.digest, known);
  const found = performance.now();
  const image = await loadAdapterImage(model, handle);
  const built = performance.now();
  engine.setSlot(SWAPPED_SLOT, image);
  const end = performance.now();
  return {
    image,
    totalMs: end - begin,
    findMs: found - begin,
    buildMs: built - found,
    setMs: end - built,
  };
}

/** Imports files into a store like the daemon's. */
async function storeOf(
  root: string,
  model: Model,
  files: string[],
): Promise<{ store: AdapterStore; adapters: AdapterSummary[] }> {
  const store = await AdapterStore.open({ root, base: model.info });
  const adapters: AdapterSummary[] = [];
  for (const file of files) {
    const staged = await store.stage(localFiles(file));
    adapters.push(await staged.publish());
    await staged.discard();
  }
  return { store, adapters };
}

/** One decode step of eight sequences, each under its own slot. */
function decode(engine: Engine, position: number): number {
  const rows = STREAMS + 1;
  const each = Int32Array.from({ length: rows }, (_, i) => i);
  const begin = performance.now();
  engine.step({
    tokens: new Int32Array(rows).fill(100 + (position % 1000)),
    positions: new Int32Array(rows).fill(position),
    sequences: each,
    slots: each,
    outputs: each,
    samplers: new Int32Array(rows).fill(-1),
  });
  return performance.now() - begin;
}

async function enginePart(
  options: SwapOptions,
  files: string[],
  storeRoot: string,
  log: (line: string) => void,
): Promise<EnginePart> {
  const model = loadModel({ path: options.modelPath, device: 'cpu', threads: options.threads });
  const engine = model.createEngine({
    kvCells: KV_CELLS,
    sequencesMax: STREAMS + 1,
    batchTokensMax: 512,
    slots: STREAMS + 1,
    slotRankMax: options.rank,
  });
  try {
    const { file, pairs } = randomAdapter(SMOLLM2_135M, options.rank, 1);
    const images: AdapterImage[] = [];
    for (const name of files.slice(0, 2 * (STREAMS + 1)))
      images.push(await model.buildAdapter(await readFile(name), pairs));
    const image = (i: number) => images[i % images.length] as AdapterImage;
    for (let slot = 0; slot <= STREAMS; slot++) engine.setSlot(slot, image(slot));
    const swapIn = (i: number) => {
      const begin = performance.now();
      engine.setSlot(SWAPPED_SLOT, image(STREAMS + i));
      return performance.now() - begin;
    };

    const stepsMs = { still: [] as number[], swapping: [] as number[] };
    const hostMs: number[] = [];
    for (let round = 0; round < options.rounds; round++) {
      for (const swapping of round % 2 === 0 ? [false, true] : [true, false]) {
        for (let sequence = 0; sequence <= STREAMS; sequence++) engine.trimSequence(sequence, 0);
        for (let position = 0; position < options.steps; position++) {
          // What a stream would wait for: the swap and the step after it.
          const swapMs = swapping ? swapIn(position) : 0;
          if (swapping) hostMs.push(swapMs);
          const stepMs = decode(engine, position) + swapMs;
          // The first steps of a sequence warm caches up.
          if (position >= 8) stepsMs[swapping ? 'swapping' : 'still'].push(stepMs);
        }
      }
    }
    for (let i = hostMs.length; i < options.swaps; i++) hostMs.push(swapIn(i));
    log(`host RAM → slot: p99 ${number(quantile(hostMs, 0.99))} ms`);

    const part: EnginePart = {
      hostMs,
      diskWarmMs: [],
      diskFreshMs: [],
      diskParts: { findMs: [], buildMs: [], setMs: [] },
      diskColdMs: [],
      stepsMs,
      fileMiB: file.length / 2 ** 20,
      imageMiB: image(0).bytes / 2 ** 20,
    };
    const { store, adapters } = await storeOf(storeRoot, model, files);
    // First as when the host cache fills up, then as when it is full and each that comes replaces one.
    const held: AdapterImage[] = [];
    for (const adapter of adapters.slice(0, options.loads)) {
      const timed = await load(model, engine, store, adapter);
      part.diskFreshMs.push(timed.totalMs);
      held.push(timed.image);
    }
    for (const one of held) one.release();
    for (let i = 0; i < options.loads; i++) {
      const timed = await load(model, engine, store, adapters[i % adapters.length] as AdapterSummary);
      timed.image.release();
      part.diskWarmMs.push(timed.totalMs);
      part.diskParts.findMs.push(timed.findMs);
      part.diskParts.buildMs.push(timed.buildMs);
      part.diskParts.setMs.push(timed.setMs);
    }
    for (const adapter of adapters.slice(0, options.loads)) {
      const { file: name } = await store.handle(adapter.digest, adapter);
      if (!dropFromPageCache(name)) continue;
      const timed = await load(model, engine, store, adapter);
      timed.image.release();
      part.diskColdMs.push(timed.totalMs);
    }
    log(
      `disk → slot: p99 ${number(quantile(part.diskWarmMs, 0.99))} ms, into fresh memory ${number(quantile(part.diskFreshMs, 0.99))} ms`,
    );
    for (const one of images) one.release();
    return part;
  } finally {
    engine.close();
    model.close();
  }
}

interface ProductRound {
  round: number;
  swapping: boolean;
  gapMaxMs: number;
  gapP99Ms: number;
  gapP50Ms: number;
  /** Requests that the background client finished meanwhile. */
  background: number;
}

/**
 * Seven streams with their own adapters, and one client that asks for one token at a time: from the same adapter each time
 * (still), or from another that is not in a slot (swapping). Both conditions prefill alike, so they differ in the swap alone.
 */
async function productPart(
  options: SwapOptions,
  files: string[],
  log: (line: string) => void,
): Promise<ProductRound[]> {
  const server = await startOurs({ modelPath: options.modelPath });
  const rounds: ProductRound[] = [];
  try {
    for (const [i, file] of files.entries()) await importAdapter(server.url, server.adminKey, `bench-${i}`, file);
    const key = await createLimitedKey(server);
    const prompt = promptSource(3, PROMPT_WORDS);
    const ask = (adapter: number, tokens: number) =>
      stream({
        url: `${server.url}/v1/completions`,
        headers: { authorization: `Bearer ${key}` },
        body: {
          model: `bench-${adapter}`,
          prompt: prompt(),
          max_tokens: tokens,
          ignore_eos: true,
          temperature: 0,
          stream: true,
          stream_options: { include_usage: true },
        },
      });
    const measure = async (swapping: boolean, tokens: number) => {
      let finished = 0;
      let running = true;
      let next = STREAMS;
      const background = (async () => {
        while (running) {
          await ask(swapping ? next : STREAMS, 1);
          next = next + 1 < files.length ? next + 1 : STREAMS;
          finished++;
        }
      })();
      const streams = await Promise.all(Array.from({ length: STREAMS }, (_, i) => ask(i, tokens)));
      running = false;
      await background;
      return { group: groupResult(streams), finished };
    };
    await measure(false, 4);
    // Once through all adapters: afterwards all are in host RAM or on disk, as the daemon's limits have it.
    for (let i = 0; i < files.length; i++) await ask(i, 1);
    for (let round = 0; round < options.rounds; round++) {
      for (const swapping of round % 2 === 0 ? [false, true] : [true, false]) {
        const { group, finished } = await measure(swapping, options.outputTokens);
        rounds.push({
          round,
          swapping,
          gapMaxMs: quantile(group.gapMs, 1),
          gapP99Ms: quantile(group.gapMs, 0.99),
          gapP50Ms: median(group.gapMs),
          background: finished,
        });
        log(
          `round ${round + 1}, ${swapping ? 'swapping' : 'still'}: longest gap ${number(quantile(group.gapMs, 1))} ms`,
        );
      }
    }
    return rounds;
  } catch (error) {
    throw new Error(`${(error as Error).message}\n${server.tree.logTail()}`);
  } finally {
    await server.stop();
  }
}

export async function swap(
  options: SwapOptions,
  log: (line: string) => void,
): Promise<{ report: Report; versions: Record<string, string> }> {
  const work = mkdtempSync(path.join(os.tmpdir(), 'bench-swap-'));
  try {
    const files = writeRandomAdapters(work, options.adapters, options.rank);
    const engine = await enginePart(options, files, path.join(work, 'store'), log);
    const product = await productPart(options, files, log);
    return { report: swapReport(engine, product, options), versions: {} };
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

function swapReport(engine: EnginePart, product: ProductRound[], options: SwapOptions): Report {
  const row = (name: string, samples: number[]) => {
    const s = summarize(samples);
    return [name, String(s.count), number(s.median), number(s.p99), number(s.max)];
  };
  const gaps = (swapping: boolean, pick: (r: ProductRound) => number) =>
    product.filter((r) => r.swapping === swapping).map(pick);
  const productRow = (name: string, swapping: boolean) => [
    name,
    number(median(gaps(swapping, (r) => r.gapP50Ms))),
    number(median(gaps(swapping, (r) => r.gapP99Ms))),
    number(Math.max(...gaps(swapping, (r) => r.gapMaxMs))),
    String(gaps(swapping, (r) => r.background).reduce((a, b) => a + b, 0)),
  ];
  const stillP50 = median(engine.stepsMs.still);
  return {
    name: 'swap',
    tables: [
      {
        title: `Engine alone: rank ${options.rank}, all seven linear layers (${number(engine.fileMiB)} MiB on disk, ${number(engine.imageMiB)} MiB in RAM)`,
        columns: ['what', 'samples', 'p50 ms', 'p99 ms', 'max ms'],
        rows: [
          row('host RAM → slot', engine.hostMs),
          row('disk → slot, page cache warm', engine.diskWarmMs),
          row('  where the weights lie', engine.diskParts.findMs),
          row('  reading the file and building the image', engine.diskParts.buildMs),
          row('  into the slot', engine.diskParts.setMs),
          row('disk → slot, page cache warm, image in fresh memory', engine.diskFreshMs),
          row('disk → slot, page cache dropped', engine.diskColdMs),
          row('step of 8 rows, 8 adapters, no swaps', engine.stepsMs.still),
          row('swap + step of 8 rows, a swap before each', engine.stepsMs.swapping),
        ],
      },
      {
        title: `Through the gateway: ${STREAMS} streams while an eighth client asks for one token at a time`,
        columns: ['eighth client', 'gap p50 ms', 'gap p99 ms', 'longest gap ms', 'its requests'],
        rows: [productRow('always the same adapter', false), productRow('another adapter each time', true)],
      },
    ],
    checks: [
      { name: 'host RAM → slot p99', value: quantile(engine.hostMs, 0.99), target: { op: '<=', value: 2 }, unit: 'ms' },
      {
        name: 'disk → slot p99 (page cache warm)',
        value: quantile(engine.diskWarmMs, 0.99),
        target: { op: '<=', value: 20 },
        unit: 'ms',
      },
      {
        name: 'longest gap with swaps − without, in steps of 8 rows',
        value: (Math.max(...gaps(true, (r) => r.gapMaxMs)) - Math.max(...gaps(false, (r) => r.gapMaxMs))) / stillP50,
        target: { op: '<=', value: 1 },
      },
    ],
    notes: [
      'llama-server cannot load or swap adapters while it runs, so there is no peer to this.',
      'Gaps through the gateway include the prefill chunks of the eighth client, in both conditions alike. "Page cache dropped" asks the kernel to forget the file; the disk or a hypervisor may still have it.',
    ],
    data: { options: { ...options, modelPath: path.basename(options.modelPath) }, engine, product },
  };
}

import type { AdapterTensorPair, Engine, Model } from '../../addon/types.ts';
import { TARGETS } from '../../addon/types.ts';
import { ENGINE_LIMITS } from '../limits.ts';

export interface WarmUpOptions {
  model: Pick<Model, 'info' | 'buildAdapter'>;
  /** Nothing runs in it yet. */
  engine: Engine;
  slots: number;
  slotRankMax: number;
  sequencesMax: number;
  rowsMax: number;
  /** Milliseconds; default `performance.now`. */
  now?: () => number;
}

const RANK = 8;
const PROMPT_ROWS = 48;
const BATCHES = [1, 2, 4, 8];

/**
 * Computes a few steps of the shapes that requests will ask for, so that pages are in memory and graphs are built before the
 * first user comes: a prompt, and decode steps of 1 to 8 rows, without an adapter and with one of zeros. Leaves KV cells,
 * slots and samplers as they were. A machine that is slow stops early.
 */
export async function warmUp(options: WarmUpOptions): Promise<void> {
  const { model, engine, slots, sequencesMax } = options;
  const now = options.now ?? (() => performance.now());
  const endMs = now() + ENGINE_LIMITS.warmUpMs;
  const rowsMax = Math.min(options.rowsMax, engine.kvCells);
  const lengths = new Array<number>(Math.max(...BATCHES)).fill(0);

  /** One step of `rows` rows for each of the first `sequences`; false if the time is up. */
  const step = (sequences: number, rows: number, slot: number): boolean => {
    const total = sequences * rows;
    if (now() >= endMs) return false;
    if (total > rowsMax || total > engine.kvCellsFree || sequences > sequencesMax) return true;
    const each = <T>(of: (sequence: number, row: number) => T) =>
      Array.from({ length: total }, (_, i) => of(Math.floor(i / rows), i % rows));
    const positions = each((sequence, row) => (lengths[sequence] as number) + row);
    const outputs = Int32Array.from({ length: sequences }, (_, sequence) => (sequence + 1) * rows - 1);
    engine.step({
      // Any tokens do; a spread of them touches more of the embedding.
      tokens: Int32Array.from(positions, (position, i) => (position * 97 + i * 31) % model.info.vocabulary),
      positions: Int32Array.from(positions),
      sequences: Int32Array.from(each((sequence) => sequence)),
      slots: new Int32Array(total).fill(slot),
      outputs,
      samplers: new Int32Array(sequences).fill(-1),
    });
    for (let sequence = 0; sequence < sequences; sequence += 1)
      lengths[sequence] = (lengths[sequence] as number) + rows;
    return true;
  };
  const forget = () => {
    for (let sequence = 0; sequence < lengths.length && sequence < sequencesMax; sequence += 1) {
      engine.trimSequence(sequence, 0);
      lengths[sequence] = 0;
    }
  };
  const run = (slot: number) => {
    // The smallest first: where even that takes long, the large one would hold up the start.
    if (step(1, 1, slot) && step(1, PROMPT_ROWS, slot)) BATCHES.every((batch) => step(batch, 1, slot));
    forget();
  };

  try {
    run(-1);
    if (slots === 0 || now() >= endMs) return;
    const { file, pairs } = zeroAdapter(model.info, Math.min(RANK, options.slotRankMax));
    const image = await model.buildAdapter(file, pairs);
    try {
      engine.setSlot(0, image);
      run(0);
    } finally {
      engine.clearSlot(0);
      image.release();
    }
  } finally {
    forget();
  }
}

/** Changes nothing, and costs what an adapter of all linear layers costs. All pairs lie on the same zeros. */
function zeroAdapter(info: Model['info'], rank: number): { file: Uint8Array; pairs: AdapterTensorPair[] } {
  const widest = Math.max(...TARGETS.flatMap((target) => [info.targets[target].in, info.targets[target].out]));
  const zeros = { offset: 0, dtype: 'f16' } as const;
  const pairs: AdapterTensorPair[] = [];
  for (let layer = 0; layer < info.layers; layer += 1) {
    for (const target of TARGETS) pairs.push({ target, layer, rank, scale: 1, a: zeros, b: zeros, permuteHeads: 0 });
  }
  return { file: new Uint8Array(widest * rank * 2), pairs };
}

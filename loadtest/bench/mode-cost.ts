/** What the exact mode costs: the same steps of the engine alone in both modes, in turns. */
import { type Engine, loadModel } from '../../addon/index.ts';
import type { QualityAdapter } from './quality-adapters.ts';
import { seededRandom } from './random.ts';
import { number, spread, type Table } from './report.ts';
import { pairedRatios, summarize } from './stats.ts';

export interface ModeCostOptions {
  costRounds: number;
  costThreads: number;
}

export interface ModeCost {
  name: string;
  /** Tokens per second, one value a round. */
  default: number[];
  exact: number[];
}

const CLIENTS = 8;
const PROMPT_TOKENS = 96;
const DECODE_STEPS = 16;

interface Shape {
  name: string;
  /** Sequences decoded together; 0: a prompt is read instead. */
  streams: number;
  /** Slot of each sequence. */
  slot: (sequence: number) => number;
}
const SHAPES: readonly Shape[] = [
  { name: `a prompt of ${PROMPT_TOKENS} tokens, base`, streams: 0, slot: () => -1 },
  { name: `a prompt of ${PROMPT_TOKENS} tokens, adapter`, streams: 0, slot: () => 0 },
  { name: '1 stream, base', streams: 1, slot: () => -1 },
  { name: '1 stream, adapter', streams: 1, slot: () => 0 },
  { name: `${CLIENTS} streams, base`, streams: CLIENTS, slot: () => -1 },
  { name: `${CLIENTS} streams, one adapter`, streams: CLIENTS, slot: () => 0 },
  { name: `${CLIENTS} streams, ${CLIENTS} different adapters`, streams: CLIENTS, slot: (sequence) => sequence },
];

/** One step of `rows` rows for each of `streams` sequences. */
function step(engine: Engine, streams: number, rows: number, position: number, shape: Shape, tokens: Int32Array): void {
  const total = streams * rows;
  const of = (pick: (sequence: number, row: number) => number) =>
    Int32Array.from({ length: total }, (_, i) => pick(Math.floor(i / rows), i % rows));
  engine.step({
    tokens: of((sequence, row) => tokens[(sequence * 7 + position + row) % tokens.length] as number),
    positions: of((_, row) => position + row),
    sequences: of((sequence) => sequence),
    slots: of(shape.slot),
    outputs: Int32Array.from({ length: streams }, (_, sequence) => (sequence + 1) * rows - 1),
    samplers: new Int32Array(streams).fill(-1),
  });
}

/** Tokens per second of one turn. */
function turn(engine: Engine, shape: Shape, tokens: Int32Array): number {
  const streams = Math.max(1, shape.streams);
  for (let sequence = 0; sequence < CLIENTS; sequence++) engine.trimSequence(sequence, 0);
  let started = performance.now();
  // Streams answer to a prompt of their own; all their prompts together fit one step.
  step(engine, streams, shape.streams === 0 ? PROMPT_TOKENS : PROMPT_TOKENS / 2, 0, shape, tokens);
  if (shape.streams === 0) return (1000 * PROMPT_TOKENS) / (performance.now() - started);
  // The first step builds what later ones use again.
  step(engine, streams, 1, PROMPT_TOKENS / 2, shape, tokens);
  started = performance.now();
  for (let n = 1; n <= DECODE_STEPS; n++) step(engine, streams, 1, PROMPT_TOKENS / 2 + n, shape, tokens);
  return (1000 * streams * DECODE_STEPS) / (performance.now() - started);
}

export async function modeCost(
  modelPath: string,
  adapter: QualityAdapter,
  options: ModeCostOptions,
  log: (line: string) => void,
): Promise<ModeCost[]> {
  const opened = await Promise.all(
    (['default', 'exact'] as const).map(async (mode) => {
      const exact = mode === 'exact';
      const model = loadModel({ path: modelPath, device: 'cpu', threads: options.costThreads, exact });
      const engine = model.createEngine({
        kvCells: 2048,
        sequencesMax: CLIENTS,
        batchTokensMax: 512,
        slots: CLIENTS,
        slotRankMax: 256,
      });
      // Images of their own: different adapters do not share what the caches hold.
      for (let slot = 0; slot < CLIENTS; slot++) {
        const image = await model.loadAdapter(adapter.file, adapter.pairs);
        engine.setSlot(slot, image);
        image.release();
      }
      return { mode, model, engine };
    }),
  );
  const random = seededRandom(3);
  const tokens = Int32Array.from({ length: 997 }, () => random.integer(300, 20_000));
  try {
    const costs = SHAPES.map(({ name }): ModeCost => ({ name, default: [], exact: [] }));
    for (let round = -1; round < options.costRounds; round++) {
      for (const [i, shape] of SHAPES.entries()) {
        for (const { mode, engine } of round % 2 === 0 ? opened : [...opened].reverse()) {
          const speed = turn(engine, shape, tokens);
          // The first round warms up.
          if (round >= 0) costs[i]?.[mode].push(speed);
        }
      }
    }
    for (const cost of costs)
      log(`${cost.name}: exact ÷ default ${number(pairedRatios(cost.exact, cost.default).median)}`);
    return costs;
  } finally {
    for (const { model, engine } of opened) {
      engine.close();
      model.close();
    }
  }
}

export function costTable(costs: readonly ModeCost[], threads: number): Table {
  return {
    title: `Cost of the exact mode: the engine alone, ${threads} thread${threads === 1 ? '' : 's'}, tok/s: median (min–max)`,
    columns: ['steps', 'default mode', 'exact mode', 'exact ÷ default'],
    rows: costs.map((cost) => [
      cost.name,
      spread(summarize(cost.default)),
      spread(summarize(cost.exact)),
      spread(pairedRatios(cost.exact, cost.default)),
    ]),
  };
}

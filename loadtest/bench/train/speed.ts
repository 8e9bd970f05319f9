/** Tokens per second and peak memory: LoRA on all linear layers, the same batches on both sides, rounds interleaved. */
import { number, spread } from '../report.ts';
import { median, pairedRatios, summarize } from '../stats.ts';
import { DTYPES, type Dtype, type Outcome, runOurs, runPeer, tokensPerSecond } from './job.ts';
import { type Bench, jobOf, type PartResult } from './setup.ts';

type Side = 'modelfactory' | Dtype;

const title = (side: Side): string => (side === 'modelfactory' ? side : `PEFT ${side}`);

export async function speed(bench: Bench): Promise<PartResult> {
  const { options, python, log } = bench;
  const sides: Side[] = python.program === undefined ? ['modelfactory'] : ['modelfactory', ...DTYPES];
  const runs: { round: number; side: Side; tokensPerSecond: number; peakMb: number }[] = [];
  for (let round = 0; round < options.rounds; round++) {
    for (const side of round % 2 === 0 ? sides : [...sides].reverse()) {
      const job = jobOf(bench, { steps: options.speedSteps + 2, initialA: bench.initialA });
      const outcome: Outcome =
        side === 'modelfactory'
          ? await runOurs(job, bench.folder)
          : await runPeer(python.program as string, { ...job, dtype: side }, bench.folder);
      const run = { round, side, tokensPerSecond: tokensPerSecond(outcome), peakMb: outcome.peakMb };
      runs.push(run);
      log(`speed, round ${round + 1}, ${title(side)}: ${number(run.tokensPerSecond)} tok/s, ${number(run.peakMb)} MB`);
    }
  }
  return speedResult(runs, bench);
}

/** Pure: runs → table and checks. */
function speedResult(
  runs: { side: Side; tokensPerSecond: number; peakMb: number }[],
  { options, meanTokens }: Bench,
): PartResult {
  const of = (side: Side, pick: 'tokensPerSecond' | 'peakMb'): number[] =>
    runs.filter((run) => run.side === side).map((run) => run[pick]);
  const sides = [...new Set(runs.map((run) => run.side))];
  const peers = DTYPES.filter((side) => sides.includes(side));
  const best = (pick: 'tokensPerSecond' | 'peakMb', sign: 1 | -1): Dtype | undefined =>
    [...peers].sort((x, y) => sign * (median(of(x, pick)) - median(of(y, pick))))[0];
  const fastest = best('tokensPerSecond', -1);
  const leanest = best('peakMb', 1);
  const checks: PartResult['checks'] = [];
  if (fastest !== undefined && leanest !== undefined) {
    checks.push(
      {
        name: `tokens/s, LoRA r=${options.rank}, batch ${options.batch}: ours ÷ PEFT ${fastest}`,
        value: pairedRatios(of('modelfactory', 'tokensPerSecond'), of(fastest, 'tokensPerSecond')).median,
        target: { op: '>=', value: 2 },
      },
      {
        name: `peak memory of the whole process: ours ÷ PEFT ${leanest}`,
        value: pairedRatios(of('modelfactory', 'peakMb'), of(leanest, 'peakMb')).median,
        target: { op: '<=', value: 0.25 },
      },
    );
  }
  return {
    tables: [
      {
        title: `Training LoRA r=${options.rank} on all linear layers, batch ${options.batch}, ${options.rounds} rounds: median (min–max)`,
        columns: ['trainer', 'tokens/s', 'peak MB of the process'],
        rows: sides.map((side) => [
          title(side),
          spread(summarize(of(side, 'tokensPerSecond'))),
          spread(summarize(of(side, 'peakMb')), 4),
        ]),
      },
    ],
    checks,
    notes: [
      `Speed: E2E, ${number(meanTokens)} tokens an example on average, ${options.speedSteps} steps after 2 of warm-up; forward, backward, clipping and AdamW; tokens without padding. PEFT pads to the longest of the batch, we pack. Both sides get the same tokens in the same order.`,
    ],
    data: runs,
    charts: {},
  };
}

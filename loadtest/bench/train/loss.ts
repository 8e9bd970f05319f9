/** The loss curve against PEFT's in float32: same tokens, order, rank, rate and initial A. */
import { number } from '../report.ts';
import { mean } from '../stats.ts';
import { lineChart } from './chart.ts';
import { type Outcome, runOurs, runPeer } from './job.ts';
import { type Bench, jobOf, type PartResult } from './setup.ts';

const losses = (outcome: Outcome): number[] => outcome.steps.map((step) => step.loss);

/** The mean over the steps around each one: single batches are noisy. */
function smooth(values: readonly number[], width = 5): [number, number][] {
  return values.map((_, i) => [i + 1, mean(values.slice(Math.max(0, i - width + 1), i + 1))]);
}

export async function loss(bench: Bench): Promise<PartResult> {
  const { options, python, log } = bench;
  const job = jobOf(bench, { batch: options.lossBatch, steps: options.lossSteps, initialA: bench.initialA });
  const progress = (side: string) => (step: { step: number; loss: number }) => {
    if (step.step % 10 === 0) log(`loss, ${side}: step ${step.step}, ${number(step.loss)}`);
  };
  const ours = losses(await runOurs(job, bench.folder, progress('modelfactory')));
  // bfloat16 rounds its own loss by more than the difference that is looked for.
  const peer =
    python.program === undefined ? [] : losses(await runPeer(python.program, job, bench.folder, progress('PEFT')));
  const thirds = (values: readonly number[]): string[] => {
    const n = Math.ceil(values.length / 3);
    return [0, 1, 2].map((k) => number(mean(values.slice(k * n, (k + 1) * n)), 4));
  };
  return {
    tables: [
      {
        title: `Training loss over ${options.lossSteps} steps, batch ${options.lossBatch}, rate ${job.learningRate}`,
        columns: ['trainer', 'mean', 'first third', 'second', 'last'],
        rows: [
          ['modelfactory', number(mean(ours), 4), ...thirds(ours)],
          ...(peer.length > 0 ? [['PEFT float32', number(mean(peer), 4), ...thirds(peer)]] : []),
        ],
      },
    ],
    checks:
      peer.length === 0
        ? []
        : [
            {
              name: 'mean loss, |ours ÷ PEFT − 1|',
              value: Math.abs(mean(ours) / mean(peer) - 1),
              target: { op: '<=', value: 0.02 },
            },
          ],
    notes: [
      'Loss: our base stays in its 4-bit form and its inputs are rounded to 8 bits, as in serving; PEFT computes with the same weights made dense, in float32.',
    ],
    data: { ours, peer },
    charts: {
      loss: lineChart('Training loss (mean of five steps)', { x: 'step', y: 'loss' }, [
        { name: 'modelfactory', points: smooth(ours) },
        ...(peer.length > 0 ? [{ name: 'PEFT float32', points: smooth(peer) }] : []),
      ]),
    },
  };
}

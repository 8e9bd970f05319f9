/** One epoch over the E2E dev set, then the test set: base against adapter, greedy, by the serving engine. */
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { loadModel } from '../../../addon/index.ts';
import { number } from '../report.ts';
import { mean } from '../stats.ts';
import { lineChart } from './chart.ts';
import { promptTokens } from './data.ts';
import { generate } from './generate.ts';
import { runOurs, tokensPerSecond, trainingSeconds } from './job.ts';
import { scoreCorpus, type TextScores } from './scores.ts';
import { type Bench, jobOf, type PartResult } from './setup.ts';
import { decodeTrained } from './trained.ts';

const ANSWER_TOKENS_MAX = 96;

export async function quality(bench: Bench): Promise<PartResult> {
  const { options, log } = bench;
  const { batch, learningRate } = options.quality;
  const steps = Math.min(options.quality.steps, Math.ceil(bench.examples / batch));
  const file = path.join(bench.folder, 'epoch.bin');
  const job = jobOf(bench, { steps, batch, learningRate, saveTo: file });
  const outcome = await runOurs(job, bench.folder, (step) => {
    if (step.step % 50 === 0) log(`quality: step ${step.step} of ${steps}, loss ${number(step.loss)}`);
  });
  const tasks = bench.testTasks.slice(0, Math.min(options.quality.tasks, bench.testTasks.length));
  const prompts = tasks.map((task) => promptTokens(bench.vocabulary, task.meaning));
  const references = tasks.map((task) => task.references);
  const model = loadModel({ path: options.modelPath, device: 'cpu' });
  const scores: Record<'base' | 'adapter', TextScores> = {} as never;
  const samples: Record<string, string[]> = {};
  for (const side of ['base', 'adapter'] as const) {
    const trained = side === 'adapter' ? decodeTrained(readFileSync(file)) : undefined;
    const answers = await generate(model, bench.vocabulary, prompts, { trained, tokensMax: ANSWER_TOKENS_MAX });
    scores[side] = scoreCorpus(references, answers);
    samples[side] = answers.slice(0, 5);
    log(`quality, ${side}: BLEU ${number(scores[side].bleu)}, ROUGE-L ${number(scores[side].rougeL)}`);
  }
  model.close();
  const losses = outcome.steps.map((step) => step.loss);
  const window = 20;
  const points = losses
    .map((_, i): [number, number] => [i + 1, mean(losses.slice(Math.max(0, i - window + 1), i + 1))])
    .filter((_, i) => i % 5 === 4 || losses.length < 100);
  return {
    tables: [
      {
        title: `E2E test set, ${tasks.length} meaning representations, after ${steps} steps of batch ${batch} (${steps >= Math.floor(bench.examples / batch) ? 'one epoch' : 'part of an epoch'} of the dev set)`,
        columns: ['model', 'BLEU', 'ROUGE-L', 'ROUGE-2'],
        rows: (['base', 'adapter'] as const).map((side) => [
          side,
          number(scores[side].bleu),
          number(scores[side].rougeL),
          number(scores[side].rouge2),
        ]),
      },
    ],
    checks: [
      { name: 'BLEU, adapter − base', value: scores.adapter.bleu - scores.base.bleu, target: { op: '>=', value: 10 } },
      {
        name: 'ROUGE-L, adapter − base',
        value: scores.adapter.rougeL - scores.base.rougeL,
        target: { op: '>=', value: 10 },
      },
    ],
    notes: [
      `Quality: LoRA r=${options.rank}, alpha ${2 * options.rank}, rate ${learningRate}, constant; ${number(trainingSeconds(outcome))} s of training at ${number(tokensPerSecond(outcome))} tokens/s. Greedy, at most ${ANSWER_TOKENS_MAX} tokens; BLEU against all references of a meaning representation (13a, as sacrebleu), ROUGE F1 of the best reference.`,
    ],
    data: { scores, samples, losses },
    charts: {
      epoch: lineChart(`Training loss (mean of ${window} steps)`, { x: 'step', y: 'loss' }, [
        { name: 'modelfactory', points },
      ]),
    },
  };
}

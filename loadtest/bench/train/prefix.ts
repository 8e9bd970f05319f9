/**
 * LoRA against P-Tuning v2 (trained keys and values before every layer's own): speed with equal padding and in the padded
 * set-up, and the time until LoRA has the validation loss that prefix tuning ends with.
 */
import { mkdtempSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { loadModel } from '../../../addon/index.ts';
import { machine } from '../machine.ts';
import { type Check, number, spread } from '../report.ts';
import { median, pairedRatios, summarize } from '../stats.ts';
import { lineChart } from './chart.ts';
import { dataFolder, promptTokens } from './data.ts';
import { generate } from './generate.ts';
import {
  examplesPerSecond,
  type Job,
  type Outcome,
  runOurs,
  runPeer,
  tokensPerSecond,
  trainingSeconds,
} from './job.ts';
import { scoreCorpus } from './scores.ts';
import { type Bench, jobOf, type PartResult, prepare } from './setup.ts';
import { decodeTrained } from './trained.ts';

type Method = Job['method'];
interface SetUp {
  id: 'equal' | 'padded' | 'published';
  title: string;
  job: (method: Method) => Partial<Job>;
}

/** The peer's faster arithmetic: bfloat16 where the processor has instructions for it. Both of its methods use the same. */
const PEER_DTYPE = machine().flags.some((flag) => flag.endsWith('_bf16')) ? 'bfloat16' : 'float32';
const ANSWER_TOKENS_MAX = 96;

function setUps({ padTo, speedSteps, paddedSteps }: Bench['options']['prefix']): SetUp[] {
  return [
    { id: 'equal', title: 'as short as the examples are', job: () => ({ steps: speedSteps + 2 }) },
    {
      id: 'padded',
      title: `both padded to ${padTo}`,
      job: () => ({ steps: paddedSteps + 1, padTo }),
    },
    {
      id: 'published',
      title: `prefix padded to ${padTo} with activation checkpointing, LoRA not`,
      job: (method) =>
        method === 'prefix' ? { steps: paddedSteps + 1, padTo, recompute: true } : { steps: speedSteps + 2 },
    },
  ];
}

interface SpeedRun {
  round: number;
  setUp: SetUp['id'];
  side: 'modelfactory' | 'PEFT';
  method: Method;
  examplesPerSecond: number;
  tokensPerSecond: number;
  peakMb: number;
  parameters: number;
}

const METHODS: readonly Method[] = ['lora', 'prefix'];

async function speeds(bench: Bench): Promise<SpeedRun[]> {
  const { options, python, log } = bench;
  const runs: SpeedRun[] = [];
  const list = setUps(options.prefix);
  // Two rounds: the third row of the table is a contrast of set-ups, not of trainers.
  for (let round = 0; round < Math.min(2, options.rounds); round++) {
    for (const setUp of list) {
      for (const side of python.program === undefined
        ? (['modelfactory'] as const)
        : (['modelfactory', 'PEFT'] as const)) {
        for (const method of round % 2 === 0 ? METHODS : [...METHODS].reverse()) {
          // LoRA of the third set-up is LoRA of the first.
          const known = runs.find(
            (r) => r.round === round && r.setUp === 'equal' && r.side === side && r.method === method,
          );
          if (setUp.id === 'published' && method === 'lora' && known) {
            runs.push({ ...known, setUp: setUp.id });
            continue;
          }
          const job = jobOf(bench, { method, batch: options.prefix.batch, dtype: PEER_DTYPE, ...setUp.job(method) });
          // PEFT's prefix tuning fails with activation checkpointing (its attention mask counts the prefix, the keys that
          // are computed again do not hold it), so its row has the padding alone.
          if (side === 'PEFT' && method === 'prefix') job.recompute = false;
          const outcome: Outcome =
            side === 'modelfactory'
              ? await runOurs(job, bench.folder)
              : await runPeer(python.program as string, job, bench.folder);
          const run: SpeedRun = {
            round,
            setUp: setUp.id,
            side,
            method,
            examplesPerSecond: examplesPerSecond(outcome, job.batch),
            tokensPerSecond: tokensPerSecond(outcome),
            peakMb: outcome.peakMb,
            parameters: outcome.parameters,
          };
          runs.push(run);
          log(
            `prefix, ${setUp.title}, ${side} ${method}: ${number(run.examplesPerSecond)} examples/s, ${number(run.peakMb)} MB`,
          );
        }
      }
    }
  }
  return runs;
}

interface Race {
  seed: number;
  prefix: Outcome;
  target: number;
  prefixSeconds: number;
  lora: Outcome;
  /** Training seconds and steps when LoRA's validation loss first was at the target or below; undefined: never. */
  reached?: { seconds: number; step: number };
  rouge2: Record<Method, number>;
}

interface Trial {
  rate: number;
  loss: number;
}

const last = (outcome: Outcome): number => outcome.validations.at(-1)?.loss ?? Number.NaN;

/** Prefix tuning's learning rates, each for some steps. */
async function trialsOf(bench: Bench): Promise<Trial[]> {
  const { options, log } = bench;
  const { batch, trialSteps, rates } = options.prefix;
  const trials: Trial[] = [];
  for (const rate of rates) {
    const job = jobOf(bench, {
      batch,
      method: 'prefix',
      steps: trialSteps,
      learningRate: rate,
      validateEvery: trialSteps,
    });
    const loss = last(await runOurs(job, bench.folder));
    trials.push({ rate, loss });
    log(`race, prefix at rate ${rate}: validation loss ${number(loss, 4)} after ${trialSteps} steps`);
  }
  return trials;
}

async function race(bench: Bench, prefixRate: number): Promise<Race> {
  const { options, log } = bench;
  const { batch, steps, loraRate } = options.prefix;
  const common = { batch } as const;
  const files = { lora: path.join(bench.folder, 'lora.bin'), prefix: path.join(bench.folder, 'prefix.bin') };
  const every = Math.max(1, Math.round(steps / 60));
  const prefix = await runOurs(
    jobOf(bench, {
      ...common,
      method: 'prefix',
      steps,
      learningRate: prefixRate,
      validateEvery: every * 6,
      saveTo: files.prefix,
    }),
    bench.folder,
  );
  const target = last(prefix);
  log(`race ${options.seed}, prefix at rate ${prefixRate}: validation loss ${number(target, 4)} after ${steps} steps`);
  const lora = await runOurs(
    jobOf(bench, { ...common, steps, learningRate: loraRate, validateEvery: every, target, saveTo: files.lora }),
    bench.folder,
  );
  const reached = lora.validations.find((v) => v.loss <= target);
  log(
    `race ${options.seed}, LoRA: that loss after ${reached?.step ?? '–'} steps; ${number(last(lora), 4)} after ${steps}`,
  );
  const model = loadModel({ path: options.modelPath, device: 'cpu' });
  const tasks = bench.validationTasks.slice(0, options.prefix.answers);
  const prompts = tasks.map((task) => promptTokens(bench.vocabulary, task.meaning));
  const rouge2 = { lora: Number.NaN, prefix: Number.NaN };
  for (const method of METHODS) {
    const trained = decodeTrained(readFileSync(files[method]));
    const answers = await generate(model, bench.vocabulary, prompts, { trained, tokensMax: ANSWER_TOKENS_MAX });
    rouge2[method] = scoreCorpus(
      tasks.map((task) => task.references),
      answers,
    ).rouge2;
  }
  model.close();
  return {
    seed: options.seed,
    prefix,
    target,
    prefixSeconds: trainingSeconds(prefix),
    lora,
    ...(reached ? { reached: { seconds: reached.seconds, step: reached.step } } : {}),
    rouge2,
  };
}

/** The benchmark with the examples in another order, and others held out. */
function shuffledAnew(bench: Bench, round: number): Bench {
  if (round === 0) return bench;
  const { options, python, log } = bench;
  const folder = mkdtempSync(path.join(bench.folder, 'race-'));
  return prepare({ ...options, seed: options.seed + round }, dataFolder(options.dataFolder), folder, python, log);
}

export async function prefix(bench: Bench): Promise<PartResult> {
  const runs = await speeds(bench);
  const { options } = bench;
  const trials = await trialsOf(bench);
  // A rate that ran into NaN sorts last.
  const prefixRate = [...trials].sort((x, y) => (x.loss || 1e9) - (y.loss || 1e9))[0]?.rate as number;
  const races: Race[] = [];
  // Each with other examples in another order: where one run ends is partly luck.
  for (let round = 0; round < options.prefix.races; round++)
    races.push(await race(shuffledAnew(bench, round), prefixRate));
  const { tokens, steps, padTo } = options.prefix;
  const list = setUps(options.prefix);
  const sides = [...new Set(runs.map((run) => run.side))];
  const of = (setUp: string, side: string, method: Method, pick: 'examplesPerSecond' | 'tokensPerSecond' | 'peakMb') =>
    runs.filter((r) => r.setUp === setUp && r.side === side && r.method === method).map((r) => r[pick]);
  const parameters = (method: Method): number => runs.find((r) => r.method === method)?.parameters ?? Number.NaN;
  const rows = list.flatMap((setUp) =>
    sides.flatMap((side) =>
      METHODS.map((method) => [
        setUp.title,
        side,
        method === 'lora' ? `LoRA r=${options.rank}` : `prefix ${tokens}`,
        spread(summarize(of(setUp.id, side, method, 'examplesPerSecond'))),
        spread(summarize(of(setUp.id, side, method, 'tokensPerSecond'))),
        spread(summarize(of(setUp.id, side, method, 'peakMb')), 4),
        method === 'lora'
          ? spread(
              pairedRatios(
                of(setUp.id, side, 'lora', 'examplesPerSecond'),
                of(setUp.id, side, 'prefix', 'examplesPerSecond'),
              ),
            )
          : '',
      ]),
    ),
  );
  const over = (pick: (race: Race) => number): string => spread(summarize(races.map(pick)), 4);
  const share = (one: Race): number =>
    one.reached === undefined ? Number.NaN : one.reached.seconds / one.prefixSeconds;
  const checks: Check[] = [
    {
      name: `time until LoRA has the validation loss that prefix tuning ends with after ${steps} steps, of prefix tuning's time (median)`,
      // A race that LoRA never won counts as the worst.
      value: median(races.map((one) => (one.reached === undefined ? Number.POSITIVE_INFINITY : share(one)))),
      target: { op: '<=', value: 1 / 3.7 },
    },
  ];
  return {
    tables: [
      {
        title: `LoRA against P-Tuning v2, batch ${options.prefix.batch}: median (min–max)`,
        columns: ['set-up', 'trainer', 'method', 'examples/s', 'real tokens/s', 'peak MB', 'LoRA ÷ prefix'],
        rows,
      },
      {
        title: `Quality and time, ours, ${steps} steps of batch ${options.prefix.batch}, ${races.length} races with other examples: median (min–max)`,
        columns: [
          'method',
          'parameters',
          'rate',
          'training s',
          'validation loss',
          'ROUGE-2',
          'loss of the other after, steps',
          'in so much of its time',
        ],
        rows: [
          [
            `prefix ${tokens}`,
            String(parameters('prefix')),
            `${prefixRate} (best of ${options.prefix.rates.join(', ')})`,
            over((one) => one.prefixSeconds),
            over((one) => last(one.prefix)),
            over((one) => one.rouge2.prefix),
            '',
            '',
          ],
          [
            `LoRA r=${options.rank}`,
            String(parameters('lora')),
            String(options.prefix.loraRate),
            over((one) => trainingSeconds(one.lora)),
            over((one) => last(one.lora)),
            over((one) => one.rouge2.lora),
            over((one) => one.reached?.step ?? Number.NaN),
            over(share),
          ],
        ],
      },
    ],
    checks,
    notes: [
      `P-Tuning v2: ${tokens} trained keys and values before every layer's own. With equal padding the two methods compute nearly the same and LoRA's own products cost it a little; the published "3.7 ×" set padded and checkpointed prefix tuning against LoRA without either, which the third set-up repeats with a fill-up to ${padTo} tokens (PEFT's prefix tuning fails with checkpointing, so its row there has the padding alone). PEFT ran in ${PEER_DTYPE}.`,
      'ROUGE-2: F1, greedy answers to meaning representations that were held out, the best of their references; validation loss: per answer token, on held-out examples, outside the measured time.',
    ],
    data: { runs, trials, races },
    charts: {
      race: lineChart('Validation loss over training time', { x: 'seconds of training', y: 'loss' }, [
        { name: `LoRA r=${options.rank}`, points: (races[0] as Race).lora.validations.map((v) => [v.seconds, v.loss]) },
        { name: `prefix ${tokens}`, points: (races[0] as Race).prefix.validations.map((v) => [v.seconds, v.loss]) },
      ]),
    },
  };
}

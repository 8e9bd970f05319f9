/**
 * One evaluation: base and adapters on the same examples. Per model: how likely it finds the references (teacher forcing),
 * then its own greedy answers, then what graders say of them; at the end one report with intervals by bootstrap.
 */

import { DaemonError } from '../errors.ts';
import type { AdapterVersion } from '../generate/prepare.ts';
import type {
  EvaluationEvent,
  EvaluationReport,
  EvaluationRequest,
  EvaluationScores,
  Grader,
  Measured,
  TrainingExample,
  Usage,
} from '../protocol.ts';
import { bootstrap, type Statistic } from './bootstrap.ts';
import type { EncodedSequence } from './encode.ts';
import { answerText, type Task, taskOf } from './examples.ts';
import { checkGraders, grade, isCostly } from './graders.ts';
import { cancelled, type Inference, type Rating } from './inference.ts';
import { EVALUATION_LIMITS } from './limits.ts';
import { Progress } from './progress.ts';
import { type AnswerScores, type BleuCounts, bleu, scoreAnswer } from './scores.ts';
import { sampleValues } from './template.ts';

export interface EvaluationContext {
  id: string;
  examples: TrainingExample[];
  encode(example: TrainingExample): EncodedSequence[];
  baseDigest: string;
  resolveAdapter(name: string): Promise<AdapterVersion>;
  ask: Inference;
  signal: AbortSignal;
  sink(event: Extract<EvaluationEvent, { type: 'progress' }>): void;
  now?: () => Date;
}

/** What became of one example with one model. */
interface Outcome {
  rating: Rating;
  answer: string | null;
  scores: AnswerScores | null;
  /** By grader, in the request's order. */
  grades: number[];
}

/** @throws DaemonError; `cancelled` once the signal is aborted. */
export async function evaluate(request: EvaluationRequest, context: EvaluationContext): Promise<EvaluationReport> {
  const startMs = performance.now();
  const { examples, ask } = context;
  checkGraders(request.graders);
  if (!request.generate && request.graders.length > 0)
    throw new DaemonError('invalid_request_error', 'graders judge generated answers; leave `generate` on', 'graders');
  if (new Set(request.models).size < request.models.length)
    throw new DaemonError('invalid_request_error', 'a model is named twice', 'models');
  const versions = await Promise.all(
    request.models.map((name) => (name === null ? null : context.resolveAdapter(name))),
  );
  for (const grader of request.graders) {
    const judge = grader.type === 'score_model' ? ask.adapterOf(grader.model) : null;
    if (judge !== null) await context.resolveAdapter(judge);
  }
  const tasks = examples.map((example) => (request.generate ? taskOf(example) : null));

  const models = request.models.length;
  const asked = tasks.filter((task) => task !== null).length;
  const costly = request.graders.some(isCostly) ? asked : 0;
  const progress = new Progress(
    { score: models * examples.length, generate: models * asked, grade: models * costly },
    context.sink,
  );
  const usage: Usage = { promptTokens: 0, cachedTokens: 0, completionTokens: 0 };
  const spend = (part: { usage: Usage; costMicros: number }) => {
    usage.promptTokens += part.usage.promptTokens;
    usage.cachedTokens += part.usage.cachedTokens;
    usage.completionTokens += part.usage.completionTokens;
    progress.costMicros += part.costMicros;
  };

  const outcomes: Outcome[][] = [];
  const scores: EvaluationScores[] = [];
  for (const [m, model] of request.models.entries()) {
    const handle = versions[m]?.handle ?? null;
    progress.begin('score', model);
    const ratings = await inFlight(examples, context.signal, async (example) => {
      const sum: Rating = { logprob: 0, rated: 0, hits: 0 };
      for (const { tokens, rated } of context.encode(example)) {
        if (!rated.includes(1)) continue;
        const { logprob, rated: counted, hits } = await ask.rate(handle, tokens, rated);
        sum.logprob += logprob;
        sum.rated += counted;
        sum.hits += hits;
      }
      progress.step();
      return sum;
    });
    if (ratings.every(({ rated }) => rated === 0))
      throw new DaemonError('invalid_request_error', 'no example has a token that counts in the loss', 'dataset');
    if (asked > 0) progress.begin('generate', model);
    const answers = await inFlight(tasks, context.signal, async (task, i) => {
      const answer = task === null ? null : await answerOf(task, model, `${context.id}-${m}-${i}`, request, ask, spend);
      if (task !== null) progress.step();
      return answer;
    });
    const failures: Record<string, number> = Object.fromEntries(request.graders.map(({ name }) => [name, 0]));
    if (costly > 0) progress.begin('grade', model);
    const grades = await inFlight(answers, context.signal, async (answer, i) => {
      const task = tasks[i];
      if (answer === null || task == null) return [];
      const values = { item: task.item, sample: sampleValues(answer.text, answer.toolCalls) };
      const given: number[] = [];
      for (const [g, grader] of request.graders.entries()) {
        const result = await grade(grader, values, ask, `${context.id}-${m}-${i}-${g}`);
        spend(result);
        if (result.failure !== null) failures[grader.name] = (failures[grader.name] ?? 0) + 1;
        given.push(result.score);
      }
      if (costly > 0) progress.step();
      return given;
    });
    const all = ratings.map((rating, i): Outcome => {
      const text = answers[i]?.text ?? null;
      return {
        rating,
        answer: text,
        scores: text === null ? null : scoreAnswer((tasks[i] as Task).reference, text),
        grades: grades[i] as number[],
      };
    });
    outcomes.push(all);
    const measured = measure(all, request.graders, request.seed);
    scores.push({ model, adapterDigest: handle?.digest ?? null, ...measured, graderFailures: failures });
  }

  return {
    id: context.id,
    createdAt: (context.now?.() ?? new Date()).toISOString(),
    baseDigest: context.baseDigest,
    dataset: request.dataset,
    examples: examples.length,
    unanswered: request.generate ? (outcomes[0] as Outcome[]).filter(({ answer }) => answer === null).length : 0,
    request,
    scores,
    samples: samplesOf(request.models, tasks, outcomes),
    seconds: Math.round(performance.now() - startMs) / 1000,
    usage,
    costMicros: progress.costMicros,
  };
}

/** Greedy. Null where the prompt leaves no room for an answer. */
async function answerOf(
  task: Task,
  model: string | null,
  requestId: string,
  request: EvaluationRequest,
  ask: Inference,
  spend: (part: { usage: Usage; costMicros: number }) => void,
): Promise<{ text: string; toolCalls: { name: string; arguments: string }[] } | null> {
  try {
    const answer = await ask.generate({
      requestId,
      adapter: model,
      prompt: task.prompt,
      maxTokens: request.maxTokens,
      sampling: { temperature: 0, seed: 0 },
    });
    spend(answer);
    return { text: answerText(answer.text, answer.toolCalls), toolCalls: answer.toolCalls };
  } catch (error) {
    if (error instanceof DaemonError && error.code === 'context_length_exceeded') return null;
    throw error;
  }
}

/** Columns: Σ −ln p, rated, hits, answered, ROUGE-1/2/L, exact, BLEU's ten counts, then the graders. */
const FIXED = 18;

type Measures = Omit<EvaluationScores, 'model' | 'adapterDigest' | 'graderFailures'>;

function measure(outcomes: Outcome[], graders: readonly Grader[], seed: number): Measures {
  const columns = FIXED + graders.length;
  const rows = new Float64Array(outcomes.length * columns);
  for (const [i, { rating, scores, grades }] of outcomes.entries()) {
    const row = rows.subarray(i * columns, (i + 1) * columns);
    row.set([-rating.logprob, rating.rated, rating.hits]);
    if (scores === null) continue;
    const { matches, totals, answerTokens, referenceTokens } = scores.bleu;
    row.set([1, scores.rouge1, scores.rouge2, scores.rougeL, scores.exact ? 1 : 0], 3);
    row.set([...matches, ...totals, answerTokens, referenceTokens], 8);
    row.set(grades, FIXED);
  }
  const ratio = (over: number, under: number): Statistic => {
    return (sums) => (sums[over] as number) / (sums[under] as number);
  };
  const statistics: Record<string, Statistic> = { loss: ratio(0, 1), tokenAccuracy: ratio(2, 1) };
  const answered = outcomes.some(({ scores }) => scores !== null);
  if (answered) {
    for (const [k, name] of ['rouge1', 'rouge2', 'rougeL', 'exactMatch'].entries()) statistics[name] = ratio(4 + k, 3);
    statistics.bleu = (sums) => bleu(bleuOf(sums.subarray(8, FIXED)));
    for (const g of graders.keys()) statistics[`grader ${g}`] = ratio(FIXED + g, 3);
  }
  const found = bootstrap(rows, columns, statistics, { seed });
  const of = (name: string) => found[name] as Measured;
  const loss = of('loss');
  return {
    loss,
    perplexity: { value: perplexity(loss.value), low: perplexity(loss.low), high: perplexity(loss.high) },
    tokenAccuracy: of('tokenAccuracy'),
    ...(answered
      ? {
          rouge1: of('rouge1'),
          rouge2: of('rouge2'),
          rougeL: of('rougeL'),
          bleu: of('bleu'),
          exactMatch: of('exactMatch'),
        }
      : {}),
    graders: answered ? Object.fromEntries(graders.map(({ name }, g) => [name, of(`grader ${g}`)])) : {},
  };
}

function bleuOf(sums: Float64Array): BleuCounts {
  const [m1, m2, m3, m4, t1, t2, t3, t4, answerTokens, referenceTokens] = sums as unknown as number[] as [
    number,
    number,
    number,
    number,
    number,
    number,
    number,
    number,
    number,
    number,
  ];
  return { matches: [m1, m2, m3, m4], totals: [t1, t2, t3, t4], answerTokens, referenceTokens };
}

/** Finite, so that it survives JSON. */
function perplexity(loss: number): number {
  return Math.min(Math.exp(loss), Number.MAX_VALUE);
}

function samplesOf(
  models: (string | null)[],
  tasks: (Task | null)[],
  outcomes: Outcome[][],
): EvaluationReport['samples'] {
  const short = (text: string) => text.slice(0, EVALUATION_LIMITS.sampleCharactersMax);
  const samples: EvaluationReport['samples'] = [];
  for (const [i, task] of tasks.entries()) {
    if (task === null || samples.length === EVALUATION_LIMITS.samplesShown) continue;
    const answers = models.map((model, m) => ({ model, text: short(outcomes[m]?.[i]?.answer ?? '') }));
    samples.push({ prompt: short(String(task.item.prompt)), reference: short(task.reference), answers });
  }
  return samples;
}

/** Works on so many at a time as the engine computes together; the first failure ends all, once those under way have ended. */
async function inFlight<T, R>(
  items: readonly T[],
  signal: AbortSignal,
  work: (item: T, index: number) => Promise<R>,
): Promise<R[]> {
  const results = new Array<R>(items.length);
  let next = 0;
  let failure: unknown = null;
  const lane = async () => {
    while (next < items.length && failure === null) {
      if (signal.aborted) throw cancelled();
      const index = next;
      next += 1;
      results[index] = await work(items[index] as T, index);
    }
  };
  const lanes = Array.from({ length: Math.min(EVALUATION_LIMITS.inFlight, items.length) }, () =>
    lane().catch((error: unknown) => {
      failure ??= error;
    }),
  );
  await Promise.all(lanes);
  if (failure !== null) throw failure;
  return results;
}

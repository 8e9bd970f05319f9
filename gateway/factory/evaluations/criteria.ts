/** What a promotion asks of a report: `rougeL >= base + 0.02`. */
import { z } from '@hono/zod-openapi';
import type { EvaluationScores, Measured } from '../../../daemon/protocol.ts';
import type { CriterionCheck } from '../../db/schema.ts';
import { limits } from '../../limits.ts';

export const METRICS = [
  'loss',
  'perplexity',
  'tokenAccuracy',
  'rouge1',
  'rouge2',
  'rougeL',
  'bleu',
  'exactMatch',
] as const;
type Metric = (typeof METRICS)[number];

const finite = z.number().min(-1e9).max(1e9);

export const criterion = z
  .strictObject({
    /** One of METRICS, or `grader:NAME`. */
    metric: z.string().refine((metric) => metricKnown(metric), `use ${METRICS.join(', ')} or grader:NAME`),
    op: z.enum(['>', '>=', '<', '<=']),
    /** The base, what the alias stands for now (both on the same report), or a number. */
    against: z.union([z.enum(['base', 'current']), finite]),
    /** Added to what is compared against. */
    margin: finite.default(0),
    /** Compare the unfavourable end of the model's 95 % interval and not its value. */
    confident: z.boolean().default(false),
  })
  .openapi('PromotionCriterion');
export type Criterion = z.output<typeof criterion>;

export const criteria = z.array(criterion).min(1).max(limits.criteriaMax);

function metricKnown(metric: string): boolean {
  return (METRICS as readonly string[]).includes(metric) || (metric.startsWith('grader:') && metric.length <= 136);
}

function measured(scores: EvaluationScores, metric: string): Measured | null {
  if (metric.startsWith('grader:')) {
    const name = metric.slice('grader:'.length);
    return Object.hasOwn(scores.graders, name) ? (scores.graders[name] as Measured) : null;
  }
  return scores[metric as Metric] ?? null;
}

export interface Compared {
  candidate: EvaluationScores;
  base: EvaluationScores | null;
  current: EvaluationScores | null;
}

/** Each with the numbers it was decided by. What the report lacks does not hold. */
export function checkCriteria(list: readonly Criterion[], compared: Compared): CriterionCheck[] {
  return list.map((one) => {
    const { metric, op, against, margin, confident } = one;
    const candidate = measured(compared.candidate, metric);
    const upward = op === '>' || op === '>=';
    const value = candidate === null ? null : confident ? (upward ? candidate.low : candidate.high) : candidate.value;
    const other = typeof against === 'number' ? null : compared[against];
    const reference =
      typeof against === 'number' ? against : other === null ? null : (measured(other, metric)?.value ?? null);
    const bound = reference === null ? null : reference + margin;
    return { criterion: one, value, bound, met: value !== null && bound !== null && holds(op, value, bound) };
  });
}

function holds(op: Criterion['op'], value: number, bound: number): boolean {
  switch (op) {
    case '>':
      return value > bound;
    case '>=':
      return value >= bound;
    case '<':
      return value < bound;
    case '<=':
      return value <= bound;
  }
}

/** `rougeL >= base + 0.02`, as people write it. */
export function criterionText({ metric, op, against, margin, confident }: Criterion): string {
  const plus = margin === 0 ? '' : ` ${margin < 0 ? '-' : '+'} ${Math.abs(margin)}`;
  return `${metric} ${op} ${against}${plus}${confident ? ' (confident)' : ''}`;
}

/** Why a criterion is not met, with its numbers. */
export function failureText({ criterion: one, value, bound }: CriterionCheck): string {
  const text = criterionText(one);
  if (value === null) return `${text}: the report has no ${one.metric} of this model`;
  if (bound === null) {
    return one.against === 'current'
      ? `${text}: the report has no ${one.metric} of what the alias stands for now; evaluate both together, or compare with base`
      : `${text}: the report has no ${one.metric} of the base; evaluate both together`;
  }
  return `${text}: it is ${short(value)}, and had to be ${one.op} ${short(bound)}`;
}

function short(value: number): string {
  return String(Number(value.toPrecision(6)));
}

/** The limits that keys and users have alike, as clients write them: what is left out stays, null lifts the limit. */
import { integer } from '../http/validate.ts';
import { limits } from '../limits.ts';

export const limitFields = {
  requests_per_minute: integer(1, limits.requestsPerMinuteMax).nullish(),
  tokens_per_minute: integer(1, limits.tokensPerMinuteMax).nullish(),
  concurrency: integer(1, limits.concurrencyMax).nullish(),
  /** Micro-units, spent in all. */
  budget_micros: integer(0, Number.MAX_SAFE_INTEGER).nullish(),
};

export interface Limits {
  requestsPerMinute: number | null;
  tokensPerMinute: number | null;
  concurrency: number | null;
  budgetMicros: number | null;
}

type Given = { [field in keyof typeof limitFields]?: number | null | undefined };

/** Those that are named. */
export function limitsIn(body: Given): Partial<Limits> {
  return {
    ...(body.requests_per_minute === undefined ? {} : { requestsPerMinute: body.requests_per_minute }),
    ...(body.tokens_per_minute === undefined ? {} : { tokensPerMinute: body.tokens_per_minute }),
    ...(body.concurrency === undefined ? {} : { concurrency: body.concurrency }),
    ...(body.budget_micros === undefined ? {} : { budgetMicros: body.budget_micros }),
  };
}

export function viewOfLimits(row: Limits) {
  return {
    requests_per_minute: row.requestsPerMinute,
    tokens_per_minute: row.tokensPerMinute,
    concurrency: row.concurrency,
    budget_micros: row.budgetMicros,
  };
}

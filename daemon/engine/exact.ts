import { ENGINE_LIMITS } from '../limits.ts';
import type { SchedulerOptions } from './scheduler.ts';

/**
 * The scheduler of the exact mode. What a step computes depends on its shape, so a request that is alone must be computed in
 * libllama's steps: its prompt in pieces of 512 rows (libllama's own), whatever they take, and nothing of it taken from
 * an earlier request.
 */
export function exactScheduler(options: SchedulerOptions): SchedulerOptions {
  return { ...options, prefillRowsAloneMin: ENGINE_LIMITS.stepTokensMax };
}

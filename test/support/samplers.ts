import type { SamplerOptions } from '../../addon/types.ts';

/** Greedy, no penalties, no logprobs. */
export const GREEDY: SamplerOptions = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repeatPenalty: 1,
  frequencyPenalty: 0,
  presencePenalty: 0,
  penaltyLast: 64,
  logitBias: [],
  seed: 1,
  topLogprobs: -1,
  ignoreEos: false,
  grammar: '',
  grammarLazy: false,
  grammarTriggers: [],
  grammarPrefill: '',
};

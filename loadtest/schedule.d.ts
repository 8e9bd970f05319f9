export interface ScheduleOptions {
  /** n; 0 = every request goes to the base model. */
  adapters: number;
  /** Exponent of the popularity; 1 = uniform. */
  alpha: number;
  /** Requests per second over all adapters. */
  rate: number;
  /** Coefficient of variation of the intervals; 1 = Poisson. */
  cv: number;
  durationSeconds: number;
  /** [low, high) */
  inputTokens: [number, number];
  /** [low, high) */
  outputTokens: [number, number];
  seed: number;
}
export interface Arrival {
  atSeconds: number;
  /** −1 for the base. */
  adapter: number;
  inputTokens: number;
  outputTokens: number;
}
export function uniformSource(seed: number): () => number;
export function adapterIndex(n: number, alpha: number, u: number): number;
export function adapterProbability(n: number, alpha: number, i: number): number;
export function gamma(uniform: () => number, shape: number, scale: number): number;
export function buildSchedule(options: ScheduleOptions): Arrival[];

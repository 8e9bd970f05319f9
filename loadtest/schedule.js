/**
 * The whole open-loop workload, computed before the first request is sent: when each request starts, which adapter it
 * asks for, how long prompt and answer are. The model is that of S-LoRA's synthetic workload (arXiv 2311.03285, section
 * 7.2, and its published trace generator): one Gamma arrival process for all adapters, popularity by a power law.
 * Plain JavaScript without imports, because k6 and Node both load it.
 */

/**
 * Uniform numbers in [0, 1) from a 32-bit seed (mulberry32).
 * @param {number} seed
 * @returns {() => number}
 */
export function uniformSource(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/**
 * Index of the adapter that a uniform number u picks: floor(n · u^(1/alpha)). alpha = 1 is uniform popularity; the smaller
 * alpha, the more requests go to adapter 0.
 * @param {number} n
 * @param {number} alpha
 * @param {number} u in [0, 1)
 */
export function adapterIndex(n, alpha, u) {
  // u < 1, but u^(1/alpha) may round up to 1.
  return Math.min(n - 1, Math.floor(n * u ** (1 / alpha)));
}

/**
 * Probability that a request asks for adapter i of n: ((i+1)/n)^alpha − (i/n)^alpha.
 * @param {number} n
 * @param {number} alpha
 * @param {number} i
 */
export function adapterProbability(n, alpha, i) {
  return ((i + 1) / n) ** alpha - (i / n) ** alpha;
}

/**
 * One draw from Gamma(shape, scale) after Marsaglia and Tsang (ACM TOMS 26, 2000); shapes below 1 by their boost.
 * @param {() => number} uniform
 * @param {number} shape
 * @param {number} scale
 * @returns {number}
 */
export function gamma(uniform, shape, scale) {
  if (shape < 1) {
    // 1 − u is in (0, 1], so the power is finite.
    const boost = (1 - uniform()) ** (1 / shape);
    return gamma(uniform, shape + 1, scale) * boost;
  }
  const d = shape - 1 / 3;
  const c = 1 / Math.sqrt(9 * d);
  for (;;) {
    const x = Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
    const v = (1 + c * x) ** 3;
    if (v <= 0) continue;
    if (Math.log(1 - uniform()) < 0.5 * x * x + d - d * v + d * Math.log(v)) return d * v * scale;
  }
}

/**
 * @typedef {object} ScheduleOptions
 * @property {number} adapters n; 0 = every request goes to the base model
 * @property {number} alpha exponent of the popularity; 1 = uniform
 * @property {number} rate R, requests per second over all adapters
 * @property {number} cv coefficient of variation of the intervals; 1 = Poisson, more = bursts
 * @property {number} durationSeconds
 * @property {[number, number]} inputTokens [low, high)
 * @property {[number, number]} outputTokens [low, high)
 * @property {number} seed
 */

/**
 * @typedef {object} Arrival
 * @property {number} atSeconds since the start
 * @property {number} adapter 0 … n − 1, or −1 for the base
 * @property {number} inputTokens
 * @property {number} outputTokens
 */

/**
 * floor(rate · duration) arrivals in rising order of time. The same options give the same list on every machine.
 * @param {ScheduleOptions} options
 * @returns {Arrival[]}
 */
export function buildSchedule(options) {
  const { adapters, alpha, rate, cv, durationSeconds, inputTokens, outputTokens, seed } = options;
  if (!(Number.isInteger(adapters) && adapters >= 0)) throw new RangeError('adapters must be an integer ≥ 0');
  for (const [name, value] of Object.entries({ alpha, rate, cv, durationSeconds })) {
    if (!(value > 0 && Number.isFinite(value))) throw new RangeError(`${name} must be a positive number`);
  }
  for (const [low, high] of [inputTokens, outputTokens]) {
    if (!(Number.isInteger(low) && Number.isInteger(high) && low >= 1 && low < high)) {
      throw new RangeError('token ranges are [low, high) in integers with 1 ≤ low < high');
    }
  }
  const uniform = uniformSource(seed);
  const count = Math.floor(rate * durationSeconds);
  /** @param {[number, number]} range */
  const draw = ([low, high]) => low + Math.floor(uniform() * (high - low));
  // Drawn column by column, in the order of the original, so that changing cv or the rate leaves adapters and lengths alone.
  const picked = Array.from({ length: count }, () => {
    // Drawn even without adapters, so that the base-only run has the same lengths and times.
    const u = uniform();
    return adapters === 0 ? -1 : adapterIndex(adapters, alpha, u);
  });
  const inputs = Array.from({ length: count }, () => draw(inputTokens));
  const outputs = Array.from({ length: count }, () => draw(outputTokens));
  let clock = 0;
  return picked.map((adapter, i) => {
    clock += gamma(uniform, 1 / (cv * cv), (cv * cv) / rate);
    return { atSeconds: clock, adapter, inputTokens: inputs[i], outputTokens: outputs[i] };
  });
}

/**
 * Open loop after S-LoRA: requests start when the schedule says, whether or not earlier ones are answered. The schedule is
 * computed from the seed before the first request; ADAPTERS=0 sends everything to the base.
 */
import { fail, sleep } from 'k6';
import exec from 'k6/execution';
import { Trend } from 'k6/metrics';
import { complete, listModels, requireServer, sloMs } from './common.js';
import { buildSchedule } from './schedule.js';

const schedule = buildSchedule({
  adapters: Number(__ENV.ADAPTERS || 8),
  alpha: Number(__ENV.ALPHA || 1),
  rate: Number(__ENV.RATE || 1),
  cv: Number(__ENV.CV || 1),
  durationSeconds: Number(__ENV.DURATION_SECONDS || 60),
  inputTokens: [Number(__ENV.INPUT_LOW || 8), Number(__ENV.INPUT_HIGH || 128)],
  outputTokens: [Number(__ENV.OUTPUT_LOW || 8), Number(__ENV.OUTPUT_HIGH || 128)],
  seed: Number(__ENV.SEED || 42),
});
const adapters = Number(__ENV.ADAPTERS || 8);

/** How much later than scheduled a request was sent; large values mean too few VUs, and the loop was not open. */
const lag = new Trend('schedule_lag_ms', true);

export const options = {
  scenarios: {
    open: {
      executor: 'shared-iterations',
      // A free VU takes the next arrival and sleeps until its time. The loop is open as long as a VU is free.
      vus: Math.max(1, Math.min(schedule.length, Number(__ENV.VUS || 200))),
      iterations: Math.max(1, schedule.length),
      maxDuration: '60m',
    },
  },
  thresholds: {
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    slo_first_token: [`rate>=${__ENV.SLO_SHARE || 0.9}`],
    first_token_ms: [`p(90)<${sloMs}`],
    schedule_lag_ms: ['p(99)<250'],
  },
};

export function setup() {
  requireServer();
  const models = listModels();
  if (models.adapters.length < adapters)
    fail(
      `${adapters} adapters wanted, ${models.adapters.length} found: run node --import tsx loadtest/bench/adapters.ts ${adapters}`,
    );
  return models;
}

/** @param {{ base: string, adapters: string[] }} models */
export default function arrive(models) {
  const index = exec.scenario.iterationInTest;
  const arrival = schedule[index];
  if (arrival === undefined) return;
  const dueMs = exec.scenario.startTime + arrival.atSeconds * 1000;
  const waitMs = dueMs - Date.now();
  if (waitMs > 0) sleep(waitMs / 1000);
  lag.add(Math.max(0, Date.now() - dueMs));
  const model = (arrival.adapter < 0 ? undefined : models.adapters[arrival.adapter]) ?? models.base;
  complete({
    model,
    adapter: arrival.adapter < 0 ? 'base' : model,
    inputTokens: arrival.inputTokens,
    outputTokens: arrival.outputTokens,
    seed: index + 1,
  });
}

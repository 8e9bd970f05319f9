/** Eight clients, each with its own adapter, each asking again as soon as it has its answer. */
import { fail } from 'k6';
import exec from 'k6/execution';
import { complete, listModels, requireServer, sloMs } from './common.js';

const clients = Number(__ENV.CLIENTS || 8);

export const options = {
  scenarios: {
    closed: { executor: 'constant-vus', vus: clients, duration: __ENV.DURATION || '30s', gracefulStop: '120s' },
  },
  thresholds: {
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    first_token_ms: [`p(95)<${sloMs}`],
    slo_first_token: ['rate>0.99'],
  },
};

export function setup() {
  requireServer();
  const models = listModels();
  if (models.adapters.length < clients)
    fail(
      `${clients} adapters wanted, ${models.adapters.length} found: run node --import tsx loadtest/bench/adapters.ts ${clients}`,
    );
  return models;
}

/** @param {{ base: string, adapters: string[] }} models */
export default function ask(models) {
  const adapter = models.adapters[(exec.vu.idInTest - 1) % clients] ?? models.base;
  const seed = exec.vu.idInTest * 1_000_003 + exec.vu.iterationInScenario;
  complete({
    model: adapter,
    adapter,
    inputTokens: Number(__ENV.INPUT_TOKENS || 90),
    outputTokens: Number(__ENV.OUTPUT_TOKENS || 64),
    seed,
  });
}

/** Prometheus metrics of the gateway; names of OpenTelemetry's gen_ai conventions where it has one. */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import { limits } from '../limits.ts';
import type { RequestRecord } from '../services.ts';

const SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60];
const TOKENS = [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536];

export class Metrics {
  readonly registry = new Registry();
  readonly #models = new Set<string>();
  readonly #requests: Counter<'route' | 'method' | 'status'>;
  readonly #refusals: Counter<'code'>;
  readonly #active: Gauge;
  readonly #duration: Histogram<'gen_ai_operation_name' | 'gen_ai_request_model' | 'error_type'>;
  readonly #firstToken: Histogram<'gen_ai_operation_name' | 'gen_ai_request_model'>;
  readonly #perToken: Histogram<'gen_ai_operation_name' | 'gen_ai_request_model'>;
  readonly #tokens: Histogram<'gen_ai_operation_name' | 'gen_ai_request_model' | 'gen_ai_token_type'>;
  readonly #cost: Counter<'gen_ai_request_model'>;

  constructor() {
    const registers = [this.registry];
    const model = ['gen_ai_operation_name', 'gen_ai_request_model'] as const;
    collectDefaultMetrics({ register: this.registry, prefix: 'modelfactory_gateway_' });
    this.#requests = new Counter({
      name: 'modelfactory_gateway_requests_total',
      help: 'HTTP requests by route and status',
      labelNames: ['route', 'method', 'status'],
      registers,
    });
    this.#refusals = new Counter({
      name: 'modelfactory_gateway_errors_total',
      help: 'Error answers by code',
      labelNames: ['code'],
      registers,
    });
    this.#active = new Gauge({
      name: 'modelfactory_gateway_active_requests',
      help: 'Requests being answered',
      registers,
    });
    this.#duration = new Histogram({
      name: 'gen_ai_server_request_duration_seconds',
      help: 'Whole duration of model requests',
      labelNames: [...model, 'error_type'],
      buckets: SECONDS,
      registers,
    });
    this.#firstToken = new Histogram({
      name: 'gen_ai_server_time_to_first_token_seconds',
      help: 'Until the first token of a stream',
      labelNames: model,
      buckets: SECONDS,
      registers,
    });
    this.#perToken = new Histogram({
      name: 'gen_ai_server_time_per_output_token_seconds',
      help: 'Per token after the first',
      labelNames: model,
      buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1],
      registers,
    });
    this.#tokens = new Histogram({
      name: 'gen_ai_client_token_usage',
      help: 'Tokens per request',
      labelNames: [...model, 'gen_ai_token_type'],
      buckets: TOKENS,
      registers,
    });
    this.#cost = new Counter({
      name: 'modelfactory_gateway_cost_micros_total',
      help: 'Posted cost in micro-units',
      labelNames: ['gen_ai_request_model'],
      registers,
    });
  }

  begin(): void {
    this.#active.inc();
  }

  end(record: RequestRecord, now: number): void {
    this.#active.dec();
    this.#requests.inc({ route: record.route, method: record.method, status: record.status });
    if (record.code != null) this.#refusals.inc({ code: record.code });
    if (record.operation === undefined || record.model === undefined) return;
    const labels = { gen_ai_operation_name: record.operation, gen_ai_request_model: this.#modelLabel(record.model) };
    const seconds = (now - record.startedAt) / 1000;
    this.#duration.observe({ ...labels, error_type: record.code ?? '' }, seconds);
    if (record.firstTokenMs !== undefined) {
      this.#firstToken.observe(labels, record.firstTokenMs / 1000);
      const rest = (record.completionTokens ?? 0) - 1;
      if (rest > 0) this.#perToken.observe(labels, Math.max(0, seconds - record.firstTokenMs / 1000) / rest);
    }
    if (record.promptTokens !== undefined)
      this.#tokens.observe({ ...labels, gen_ai_token_type: 'input' }, record.promptTokens);
    if (record.completionTokens !== undefined)
      this.#tokens.observe({ ...labels, gen_ai_token_type: 'output' }, record.completionTokens);
    if (record.costMicros !== undefined)
      this.#cost.inc({ gen_ai_request_model: labels.gen_ai_request_model }, record.costMicros);
  }

  /** Thousands of adapters must not become thousands of time series. */
  #modelLabel(model: string): string {
    if (this.#models.has(model)) return model;
    if (this.#models.size >= limits.metricModelsMax) return 'other';
    this.#models.add(model);
    return model;
  }
}

/** Daemon metrics below the gateway's own: each sample gets `daemon="i"`, families are told once. */
export function mergeMetrics(own: string, daemons: (string | null)[]): string {
  const families = new Map<string, { head: string[]; samples: string[] }>();
  const ownNames = new Set(own.match(/^# TYPE (\S+)/gm)?.map((line) => line.slice(7)) ?? []);
  daemons.forEach((text, index) => {
    let family = { head: [] as string[], samples: [] as string[] };
    let skip = false;
    for (const line of text?.split('\n') ?? []) {
      if (line === '' || line === '# EOF') continue;
      const head = /^# (HELP|TYPE) (\S+)/.exec(line);
      if (head !== null) {
        const name = head[2] as string;
        skip = ownNames.has(name);
        const known = families.get(name);
        family = known ?? { head: [], samples: [] };
        if (known === undefined) families.set(name, family);
        if (!family.head.some((other) => other.startsWith(`# ${head[1]} `))) family.head.push(line);
      } else if (!line.startsWith('#') && !skip) {
        const sample = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})?(\s.*)$/.exec(line);
        if (sample !== null)
          family.samples.push(`${sample[1]}{daemon="${index}"${sample[2] ? `,${sample[2]}` : ''}}${sample[3]}`);
      }
    }
  });
  const merged = [...families.values()]
    .filter(({ samples }) => samples.length > 0)
    .flatMap(({ head, samples }) => [...head, ...samples]);
  return merged.length === 0 ? own : `${own.trimEnd()}\n${merged.join('\n')}\n`;
}

import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import type { AdapterLoad, AdapterPlace, EngineGauges, StepReport, TierCounters } from './engine/messages.ts';

const STEP_SECONDS = [0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 3];
const OVERHEAD_SECONDS = [0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.005, 0.02];
const LATENCY_SECONDS = [0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6, 12, 30, 60, 120];
const LOAD_SECONDS = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1, 5];

export interface LoraUse {
  /** Adapters that one batch can hold. */
  max: number;
  /** Names of adapters with requests that are computed, and with requests that wait. */
  running: string[];
  waiting: string[];
}

/**
 * Prometheus metrics of one daemon. Every name begins with `modelfactory_`, but for the one that inference routers know
 * under vLLM's name; no label carries a caller or a text.
 */
export class Metrics {
  readonly registry = new Registry();
  private readonly requests = this.counter('requests_total', 'Requests that were computed, by kind and outcome.', [
    'kind',
    'outcome',
  ]);
  private readonly tokens = this.counter('tokens_total', 'Tokens: prompt (cached ones apart) and generated.', ['kind']);
  private readonly queueSeconds = this.histogram(
    'queue_seconds',
    'From the request to its admission.',
    LATENCY_SECONDS,
  );
  private readonly firstTokenSeconds = this.histogram(
    'first_token_seconds',
    'From the request to its first token.',
    LATENCY_SECONDS,
  );
  private readonly requestSeconds = this.histogram(
    'request_seconds',
    'From the request to its last token and receipt.',
    LATENCY_SECONDS,
  );
  private readonly stepSeconds = this.histogram('step_seconds', 'Compute time of a step.', STEP_SECONDS);
  private readonly overheadSeconds = this.histogram(
    'step_overhead_seconds',
    'Time between two steps while there was work.',
    OVERHEAD_SECONDS,
  );
  private readonly rows = this.counter('step_rows_total', 'Rows of all steps.', ['kind']);
  private readonly occupancy = this.histogram(
    'batch_decode_rows',
    'Decoding sequences in a step.',
    [0, 1, 2, 4, 8, 12, 16, 24, 32],
  );
  private readonly running = this.gauge('sequences_running', 'Sequences that are computed now.');
  private readonly waiting = this.gauge('sequences_waiting', 'Sequences that wait for admission.');
  private readonly kvFree = this.gauge('kv_cells_free', 'KV cells that hold nothing.');
  private readonly schedulerTotals = this.gauge(
    'scheduler_events',
    'Since the start: preemptions, yields of a slot, and what the prefix cache did.',
    ['event'],
  );
  private readonly adapterLoaded = this.gauge('adapter_loaded', '1 where an adapter is resident.', [
    'adapter',
    'level',
  ]);
  private readonly adaptersLoaded = this.gauge('adapters_loaded', 'Resident adapters.', ['level']);
  private readonly adapterBytes = this.gauge('adapter_bytes', 'Bytes of adapter weights in memory.');
  private readonly tierTotals = this.gauge(
    'adapter_tier_events',
    'Since the start: hits, misses and evictions of the adapter tiers.',
    ['event'],
  );
  private readonly loadSeconds = this.histogram(
    'adapter_load_seconds',
    'Time to bring an adapter from disk to host RAM, or from there to a slot.',
    LOAD_SECONDS,
    ['level'],
  );

  constructor() {
    collectDefaultMetrics({ register: this.registry });
  }

  /**
   * `vllm:lora_requests_info`, as the Gateway API inference extension and llm-d read it to route by adapter: one series whose
   * labels say which adapters run and wait, whose value is the time in seconds. Asked for at each scrape.
   */
  watchLora(use: () => LoraUse): void {
    const gauge = new Gauge({
      name: 'vllm:lora_requests_info',
      help: 'Adapters with running and with waiting requests, as labels; the value is the time of the scrape.',
      labelNames: ['max_lora', 'running_lora_adapters', 'waiting_lora_adapters'],
      registers: [this.registry],
      collect: () => {
        const { max, running, waiting } = use();
        gauge.reset();
        gauge.set(
          {
            max_lora: String(max),
            running_lora_adapters: running.sort().join(','),
            waiting_lora_adapters: waiting.sort().join(','),
          },
          Date.now() / 1000,
        );
      },
    });
  }

  /** How the audit of the whole receipt log stands. Asked for at each scrape. */
  watchAudit(report: () => { status: string; leaves: number }): void {
    new Gauge({
      name: 'modelfactory_receipt_audit',
      help: '1 at the state of the audit of the whole receipt log that every start begins.',
      labelNames: ['status'],
      registers: [this.registry],
      collect() {
        for (const status of ['running', 'ok', 'failed']) this.set({ status }, report().status === status ? 1 : 0);
      },
    });
    new Gauge({
      name: 'modelfactory_receipt_audit_leaves',
      help: 'Receipts that this audit has computed again.',
      registers: [this.registry],
      collect() {
        this.set(report().leaves);
      },
    });
  }

  /** The training run that has the worker, and how many wait. Asked for at each scrape. */
  watchTraining(
    state: () => {
      queued: number;
      running: { step: number; trainLoss: number | null; tokensPerSecond: number | null } | null;
    },
  ): void {
    const watch = (name: string, help: string, value: (now: ReturnType<typeof state>) => number) =>
      new Gauge({
        name: `modelfactory_training_${name}`,
        help,
        registers: [this.registry],
        collect() {
          this.set(value(state()));
        },
      });
    watch('queued', 'Training runs that wait for their turn.', ({ queued }) => queued);
    watch('running', '1 while a run is trained.', ({ running }) => (running === null ? 0 : 1));
    watch('step', 'Optimiser steps of the run that is trained.', ({ running }) => running?.step ?? 0);
    watch('loss', 'Training loss of its last step.', ({ running }) => running?.trainLoss ?? 0);
    watch('tokens_per_second', 'Its speed over the last steps.', ({ running }) => running?.tokensPerSecond ?? 0);
  }

  step(report: StepReport, gauges: EngineGauges): void {
    this.stepSeconds.observe(report.computeMicros / 1e6);
    if (report.overheadMicros > 0) this.overheadSeconds.observe(report.overheadMicros / 1e6);
    this.rows.inc({ kind: 'decode' }, report.decodeRows);
    this.rows.inc({ kind: 'prefill' }, report.prefillRows);
    this.occupancy.observe(report.decodeRows);
    this.standing(gauges);
  }

  standing(gauges: EngineGauges): void {
    this.running.set(gauges.running);
    this.waiting.set(gauges.waiting);
    this.kvFree.set(gauges.kvCellsFree);
    const { preemptions, yields, prefixHits, prefixMisses, prefixEvictions } = gauges;
    for (const [event, value] of Object.entries({ preemptions, yields, prefixHits, prefixMisses, prefixEvictions })) {
      this.schedulerTotals.set({ event }, value);
    }
  }

  /** `namesOf`: the adapter's names, or undefined for a version that no name points to any more. */
  places(
    places: AdapterPlace[],
    counters: TierCounters,
    loads: AdapterLoad[],
    namesOf: (digest: string) => Iterable<string> | undefined,
  ): void {
    this.adapterLoaded.reset();
    let bytes = 0;
    const levels = { slot: 0, host: 0 };
    for (const place of places) {
      bytes += place.bytes;
      levels[place.tier] += 1;
      for (const adapter of namesOf(place.digest) ?? [place.digest.slice(0, 12)])
        this.adapterLoaded.set({ adapter, level: place.tier }, 1);
    }
    this.adaptersLoaded.set({ level: 'slot' }, levels.slot);
    this.adaptersLoaded.set({ level: 'host' }, levels.host);
    this.adapterBytes.set(bytes);
    for (const [event, value] of Object.entries(counters)) this.tierTotals.set({ event }, value);
    for (const { level, seconds } of loads) this.loadSeconds.observe({ level }, seconds);
  }

  request(
    kind: string,
    result: {
      outcome: string;
      usage: { promptTokens: number; cachedTokens: number; completionTokens: number };
      queueMs: number;
      firstTokenMs: number;
      totalMs: number;
    },
  ): void {
    this.requests.inc({ kind, outcome: result.outcome });
    this.tokens.inc({ kind: 'prompt' }, result.usage.promptTokens - result.usage.cachedTokens);
    this.tokens.inc({ kind: 'cached' }, result.usage.cachedTokens);
    this.tokens.inc({ kind: 'generated' }, result.usage.completionTokens);
    this.queueSeconds.observe(result.queueMs / 1000);
    if (result.firstTokenMs > 0) this.firstTokenSeconds.observe(result.firstTokenMs / 1000);
    this.requestSeconds.observe(result.totalMs / 1000);
  }

  private counter<L extends string>(name: string, help: string, labelNames: L[] = []): Counter<L> {
    return new Counter({ name: `modelfactory_${name}`, help, labelNames, registers: [this.registry] });
  }
  private gauge<L extends string>(name: string, help: string, labelNames: L[] = []): Gauge<L> {
    return new Gauge({ name: `modelfactory_${name}`, help, labelNames, registers: [this.registry] });
  }
  private histogram<L extends string>(
    name: string,
    help: string,
    buckets: number[],
    labelNames: L[] = [],
  ): Histogram<L> {
    return new Histogram({ name: `modelfactory_${name}`, help, buckets, labelNames, registers: [this.registry] });
  }
}

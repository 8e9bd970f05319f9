/**
 * `npm run bench -- serve`: our server against llama-server, over real HTTP streams. Every round measures every scenario
 * on both sides, one right after the other and in alternating order, with the idle side stopped.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { importAdapter, SMOLLM2_135M, writeRandomAdapters } from './adapters.ts';
import {
  createLimitedKey,
  llamaServerVersion,
  type OurServer,
  peersFolder,
  type Server,
  sleep,
  startLlamaServer,
  startOurs,
} from './processes.ts';
import { promptSource } from './prompts.ts';
import { type Check, number, type Report, spread } from './report.ts';
import { type GroupResult, groupResult, stream } from './sse.ts';
import { median, pairedRatios, quantile, summarize } from './stats.ts';

export interface ServeOptions {
  modelPath: string;
  rounds: number;
  clients: number;
  outputTokens: number;
  /** Words of a prompt; about as many tokens. */
  promptWords: number;
  rank: number;
  threads: number;
  seed: number;
}

export const SERVE_DEFAULTS = {
  rounds: 3,
  clients: 8,
  outputTokens: 64,
  promptWords: 90,
  rank: 8,
  threads: 2,
  seed: 1,
} as const;

/** `adapter(i)` of client i, null = base. */
export interface Scenario {
  id: 'different' | 'base' | 'single' | 'one-adapter';
  title: string;
  clients: number;
  adapter: (client: number) => number | null;
}

export function scenarios(clients: number): Scenario[] {
  return [
    { id: 'different', title: `${clients} clients, ${clients} different adapters`, clients, adapter: (i) => i },
    { id: 'base', title: `${clients} clients, base only`, clients, adapter: () => null },
    { id: 'single', title: '1 stream, base', clients: 1, adapter: () => null },
    { id: 'one-adapter', title: `${clients} clients, one adapter for all`, clients, adapter: () => 0 },
  ];
}

type Side = 'ours' | 'peer';

export interface Round {
  round: number;
  scenario: Scenario['id'];
  side: Side;
  result: Omit<GroupResult, 'gapMs' | 'firstTokenMs'> & {
    firstTokenP50Ms: number;
    firstTokenMaxMs: number;
    gapP50Ms: number;
    gapP99Ms: number;
    gapMaxMs: number;
    firstTokenMs: number[];
  };
}

export function condense(group: GroupResult): Round['result'] {
  const { gapMs, ...rest } = group;
  return {
    ...rest,
    firstTokenP50Ms: median(group.firstTokenMs),
    firstTokenMaxMs: quantile(group.firstTokenMs, 1),
    gapP50Ms: median(gapMs),
    gapP99Ms: quantile(gapMs, 0.99),
    gapMaxMs: quantile(gapMs, 1),
  };
}

const adapterName = (i: number) => `bench-${i}`;
/** After SIGCONT and between trees: lets sockets, timers and clocks of the woken side settle. */
const SETTLE_MS = 300;

interface Target {
  side: Side;
  server: Server;
  request: (
    prompt: string,
    adapter: number | null,
    outputTokens: number,
  ) => { headers: Record<string, string>; body: unknown };
}

async function runGroup(
  target: Target,
  scenario: Scenario,
  prompt: () => string,
  outputTokens: number,
): Promise<GroupResult> {
  const streams = await Promise.all(
    Array.from({ length: scenario.clients }, (_, client) => {
      const { headers, body } = target.request(prompt(), scenario.adapter(client), outputTokens);
      return stream({ url: `${target.server.url}/v1/completions`, headers, body });
    }),
  );
  const short = streams.find((s) => s.completionTokens !== outputTokens);
  if (short)
    throw new Error(`${target.side}: an answer has ${short.completionTokens} tokens instead of ${outputTokens}`);
  return groupResult(streams);
}

const common = (prompt: string, outputTokens: number) => ({
  prompt,
  max_tokens: outputTokens,
  temperature: 0,
  ignore_eos: true,
  stream: true,
  stream_options: { include_usage: true },
});

async function prepareOurs(options: ServeOptions, adapters: string[]): Promise<{ server: OurServer; target: Target }> {
  const server = await startOurs({ modelPath: options.modelPath });
  try {
    for (const [i, file] of adapters.entries()) await importAdapter(server.url, server.adminKey, adapterName(i), file);
    const key = await createLimitedKey(server);
    const list = (await (
      await fetch(`${server.url}/v1/models`, { headers: { authorization: `Bearer ${key}` } })
    ).json()) as { data: { id: string }[] };
    const base = list.data.find((m) => !m.id.startsWith('bench-'))?.id;
    if (!base) throw new Error('GET /v1/models does not list the base model');
    return {
      server,
      target: {
        side: 'ours',
        server,
        request: (prompt, adapter, outputTokens) => ({
          headers: { authorization: `Bearer ${key}` },
          body: { model: adapter === null ? base : adapterName(adapter), ...common(prompt, outputTokens) },
        }),
      },
    };
  } catch (error) {
    await server.stop();
    throw error;
  }
}

const peerRequest: Target['request'] = (prompt, adapter, outputTokens) => ({
  headers: {},
  body: {
    ...common(prompt, outputTokens),
    cache_prompt: false,
    // Without the field the peer applies every adapter it has loaded; what the list leaves out has scale 0.
    lora: [adapter === null ? { id: 0, scale: 0 } : { id: adapter, scale: 1 }],
  },
});

export async function serve(
  options: ServeOptions,
  log: (line: string) => void,
): Promise<{ report: Report; versions: Record<string, string> }> {
  const work = mkdtempSync(path.join(os.tmpdir(), 'bench-serve-'));
  const peers = peersFolder();
  const rounds: Round[] = [];
  const targets: Target[] = [];
  const closers: (() => Promise<void>)[] = [];
  try {
    const adapters = writeRandomAdapters(
      path.join(work, 'adapters'),
      options.clients,
      options.rank,
      options.seed,
      SMOLLM2_135M,
    );
    if (peers.folder !== undefined) {
      const server = await startLlamaServer({
        folder: peers.folder,
        modelPath: options.modelPath,
        loraPaths: adapters,
        threads: options.threads,
        parallel: options.clients,
        logFolder: work,
      });
      closers.push(() => server.tree.stop());
      targets.push({ side: 'peer', server, request: peerRequest });
      server.tree.pause();
    }
    const ours = await prepareOurs(options, adapters);
    closers.push(() => ours.server.stop());
    targets.push(ours.target);
    ours.server.tree.pause();

    const prompt = promptSource(options.seed, options.promptWords);
    const list = scenarios(options.clients);
    const measure = async (target: Target, scenario: Scenario, outputTokens: number) => {
      target.server.tree.resume();
      await sleep(SETTLE_MS);
      try {
        return await runGroup(target, scenario, prompt, outputTokens);
      } catch (error) {
        throw new Error(`${(error as Error).message}\n${target.server.tree.logTail()}`);
      } finally {
        target.server.tree.pause();
      }
    };
    log('warming up');
    for (const target of targets) for (const scenario of list) await measure(target, scenario, 4);
    for (let round = 0; round < options.rounds; round++) {
      for (const scenario of list) {
        const order = round % 2 === 0 ? targets : [...targets].reverse();
        for (const target of order) {
          const result = condense(await measure(target, scenario, options.outputTokens));
          rounds.push({ round, scenario: scenario.id, side: target.side, result });
          log(
            `round ${round + 1}  ${scenario.title}  ${target.side}: ${number(result.tokensPerSecond)} tok/s, ` +
              `first token ${number(result.firstTokenP50Ms)} ms (worst ${number(result.firstTokenMaxMs)})`,
          );
        }
      }
    }
  } finally {
    for (const close of closers) await close();
    rmSync(work, { recursive: true, force: true });
  }
  const versions: Record<string, string> =
    peers.folder === undefined ? {} : { 'llama-server': llamaServerVersion(peers.folder) };
  return { report: serveReport(rounds, options, peers.sentence), versions };
}

/** Pure: measured rounds → tables and checks. */
export function serveReport(rounds: readonly Round[], options: ServeOptions, sentence: string): Report {
  const values = (scenario: Scenario['id'], side: Side, pick: (r: Round['result']) => number) =>
    rounds.filter((r) => r.scenario === scenario && r.side === side).map((r) => pick(r.result));
  const hasPeer = rounds.some((r) => r.side === 'peer');
  const ratio = (scenario: Scenario['id'], pick: (r: Round['result']) => number) =>
    hasPeer ? pairedRatios(values(scenario, 'ours', pick), values(scenario, 'peer', pick)) : summarize([]);
  const speed = (r: Round['result']) => r.tokensPerSecond;
  const worst = (r: Round['result']) => r.firstTokenMaxMs;
  const list = scenarios(options.clients);
  const sides: Side[] = hasPeer ? ['ours', 'peer'] : ['ours'];

  const rows = list.flatMap((scenario) =>
    sides.map((side) => {
      const column = (pick: (r: Round['result']) => number) => spread(summarize(values(scenario.id, side, pick)));
      return [
        scenario.title,
        side === 'ours' ? 'modelfactory' : 'llama-server',
        column(speed),
        column((r) => r.firstTokenP50Ms),
        column(worst),
        column((r) => r.gapP50Ms),
        column((r) => r.gapP99Ms),
      ];
    }),
  );
  const ratios = list.map((scenario) => [
    scenario.title,
    spread(ratio(scenario.id, speed)),
    spread(ratio(scenario.id, worst)),
  ]);
  const own = pairedRatios(values('different', 'ours', speed), values('base', 'ours', speed));
  const cached = rounds.reduce((sum, r) => sum + r.result.cachedTokens, 0);
  const perEvent = rounds.filter((r) => r.side === 'ours').map((r) => r.result.completionTokens / r.result.events);

  const checks: Check[] = [
    {
      name: 'different adapters, tok/s, ours ÷ llama-server',
      value: ratio('different', speed).median,
      target: { op: '>=', value: 2 },
    },
    {
      name: 'different adapters, worst first token, ours ÷ llama-server',
      value: ratio('different', worst).median,
      target: { op: '<=', value: 1 / 3 },
    },
    {
      name: 'base only, tok/s, ours ÷ llama-server',
      value: ratio('base', speed).median,
      target: { op: '>=', value: 1 },
    },
    {
      name: 'one stream, tok/s, ours ÷ llama-server',
      value: ratio('single', speed).median,
      target: { op: '>=', value: 0.9 },
    },
    { name: 'our different adapters ÷ our base only, tok/s', value: own.median, target: { op: '>=', value: 0.75 } },
  ];
  return {
    name: 'serve',
    tables: [
      {
        title: `Serving, ${options.rounds} rounds: median (min–max)`,
        columns: [
          'scenario',
          'server',
          'tok/s',
          'first token p50 ms',
          'worst first token ms',
          'gap p50 ms',
          'gap p99 ms',
        ],
        rows,
      },
      ...(hasPeer
        ? [
            {
              title: 'Ours ÷ llama-server, per round: median (min–max)',
              columns: ['scenario', 'tok/s', 'worst first token'],
              rows: ratios,
            },
          ]
        : []),
      {
        title: 'Ours against ours',
        columns: ['what', 'ratio'],
        rows: [['different adapters ÷ base only, tok/s', spread(own)]],
      },
    ],
    checks: hasPeer ? checks : checks.slice(-1),
    notes: [
      ...(sentence === '' ? [] : [sentence]),
      `Prompts of about ${options.promptWords} tokens, different for every request; ${options.outputTokens} tokens out (ignore_eos), greedy, /v1/completions, streamed; adapters: rank ${options.rank}, float32, all seven linear layers, the same GGUF files on both sides. Ours runs through the gateway with an API key, limits and receipts.`,
      'tok/s counts completion tokens over the time from the first request to the last byte, prompts included. While one server is measured the other is stopped.',
      `Prompt tokens served from a cache: ${cached} (both sides). Tokens per streamed event of ours: ${number(median(perEvent))}.`,
    ],
    data: { options: { ...options, modelPath: path.basename(options.modelPath) }, rounds },
  };
}

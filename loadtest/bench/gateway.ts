/**
 * `npm run bench -- gateway`: what a gateway adds to a request, ours and Portkey's, before the same scripted upstream that
 * answers at once. Latencies are taken request by request in turn (direct, ours, direct, Portkey, …), so that all see
 * the same moments of the machine.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import os from 'node:os';
import path from 'node:path';
import { performance } from 'node:perf_hooks';
import { createLimitedKey, freePort, ProcessTree } from './processes.ts';
import { number, projectFolder, type Report, spread } from './report.ts';
import { stream } from './sse.ts';
import { median, quantile, summarize } from './stats.ts';
import { UPSTREAM_MODEL } from './upstream.ts';

export interface GatewayOptions {
  rounds: number;
  /** Requests per contender and round. */
  requests: number;
  connections: number;
  loadSeconds: number;
  streamTokens: number;
}
export const GATEWAY_DEFAULTS = {
  rounds: 3,
  requests: 300,
  connections: 16,
  loadSeconds: 3,
  streamTokens: 2000,
} as const;

const PORTKEY = '1.15.2';
const PORTKEY_NODE_SERVER = '1.3.3';
const DAEMON_TOKEN = 'bench-daemon-token-0123456789abcdef';

interface Contender {
  name: string;
  url: string;
  path: string;
  headers: Record<string, string>;
  body: (tokens: number, streamed: boolean) => unknown;
  /** The direct contender that its added latency is counted from. */
  direct?: string;
  tree?: ProcessTree;
}

interface Sent {
  status: number;
  ms: number;
  bytes: number;
}

function send(agent: http.Agent, contender: Contender, body: string): Promise<Sent> {
  return new Promise((resolve, reject) => {
    const start = performance.now();
    const request = http.request(
      contender.url + contender.path,
      {
        method: 'POST',
        agent,
        headers: {
          'content-type': 'application/json',
          'content-length': Buffer.byteLength(body),
          ...contender.headers,
        },
      },
      (response) => {
        let bytes = 0;
        response.on('data', (part: Buffer) => {
          bytes += part.length;
        });
        response.on('end', () => resolve({ status: response.statusCode ?? 0, ms: performance.now() - start, bytes }));
        response.on('error', reject);
      },
    );
    request.on('error', reject);
    request.end(body);
  });
}

async function sendChecked(agent: http.Agent, contender: Contender, body: string): Promise<Sent> {
  const sent = await send(agent, contender, body);
  if (sent.status !== 200)
    throw new Error(`${contender.name} answered ${sent.status}\n${contender.tree?.logTail() ?? ''}`);
  return sent;
}

/**
 * Installs Portkey once into a temporary folder; returns its start script, or undefined when that is not possible. Its streams
 * fail with the newest @hono/node-server that its range allows (appending to immutable headers), so the lowest is taken.
 */
function installPortkey(log: (line: string) => void): string | undefined {
  const folder = path.join(os.tmpdir(), `modelfactory-bench-portkey-${PORTKEY}-${PORTKEY_NODE_SERVER}`);
  const script = path.join(folder, 'node_modules', '@portkey-ai', 'gateway', 'build', 'start-server.js');
  if (existsSync(script)) return script;
  log(`installing @portkey-ai/gateway ${PORTKEY} into a temporary folder`);
  mkdirSync(folder, { recursive: true });
  const manifest = {
    private: true,
    dependencies: { '@portkey-ai/gateway': PORTKEY },
    overrides: { '@hono/node-server': PORTKEY_NODE_SERVER },
  };
  writeFileSync(path.join(folder, 'package.json'), JSON.stringify(manifest));
  spawnSync('npm', ['install', '--no-audit', '--no-fund', '--ignore-scripts'], {
    cwd: folder,
    stdio: 'ignore',
    timeout: 180_000,
  });
  return existsSync(script) ? script : undefined;
}

const chatBody = (model: string) => (tokens: number, streamed: boolean) => ({
  model,
  messages: [{ role: 'user', content: 'Say something.' }],
  max_tokens: tokens,
  ...(streamed ? { stream: true, stream_options: { include_usage: true } } : {}),
});

async function startContenders(
  work: string,
  trees: ProcessTree[],
  log: (line: string) => void,
): Promise<{ contenders: Contender[]; notes: string[] }> {
  const notes: string[] = [];
  const start = (name: string, args: string[], env: Record<string, string>) => {
    const logFile = path.join(work, `${name}.log`);
    const tree = new ProcessTree(name, process.execPath, args, {
      cwd: projectFolder,
      env: { ...process.env, ...env },
      logFile,
    });
    trees.push(tree);
    return tree;
  };
  const upstreamPort = await freePort();
  const upstream = start(
    'upstream',
    ['--import', 'tsx', path.join(projectFolder, 'loadtest/bench/upstream.ts'), String(upstreamPort)],
    {},
  );
  const upstreamUrl = `http://127.0.0.1:${upstreamPort}`;
  await upstream.ready(`${upstreamUrl}/health`);

  const port = await freePort();
  const ours = start('gateway', ['--import', 'tsx', path.join(projectFolder, 'gateway/main.ts')], {
    HOST: '127.0.0.1',
    PORT: String(port),
    MODELFACTORY_DATA: path.join(work, 'data'),
    MODELFACTORY_DAEMONS: upstreamUrl,
    MODELFACTORY_DAEMON_TOKEN: DAEMON_TOKEN,
  });
  const url = `http://127.0.0.1:${port}`;
  await ours.ready(`${url}/health`);
  const adminKey = readFileSync(path.join(work, 'data', 'admin.key'), 'utf8').trim();
  const key = await createLimitedKey({ url, adminKey });

  const contenders: Contender[] = [
    {
      name: 'direct (daemon protocol)',
      url: upstreamUrl,
      path: '/generate',
      headers: {},
      body: (tokens) => ({ requestId: 'direct', callerHash: '0'.repeat(64), maxTokens: tokens }),
    },
    {
      name: 'modelfactory',
      url,
      path: '/v1/chat/completions',
      headers: { authorization: `Bearer ${key}` },
      body: chatBody(UPSTREAM_MODEL),
      direct: 'direct (daemon protocol)',
      tree: ours,
    },
    {
      name: 'direct (OpenAI)',
      url: upstreamUrl,
      path: '/v1/chat/completions',
      headers: {},
      body: chatBody(UPSTREAM_MODEL),
    },
  ];

  const script = installPortkey(log);
  if (script === undefined)
    notes.push(`Portkey columns skipped: @portkey-ai/gateway ${PORTKEY} could not be installed.`);
  else {
    const portkeyPort = await freePort();
    const portkey = start('portkey', [script, `--port=${portkeyPort}`, '--headless'], {
      TRUSTED_CUSTOM_HOSTS: '127.0.0.1',
      NODE_ENV: 'production',
    });
    const portkeyUrl = `http://127.0.0.1:${portkeyPort}`;
    await portkey.ready(`${portkeyUrl}/`);
    contenders.push({
      name: `Portkey ${PORTKEY}`,
      url: portkeyUrl,
      path: '/v1/chat/completions',
      headers: {
        authorization: 'Bearer x',
        'x-portkey-provider': 'openai',
        'x-portkey-custom-host': `${upstreamUrl}/v1`,
      },
      body: chatBody(UPSTREAM_MODEL),
      direct: 'direct (OpenAI)',
      tree: portkey,
    });
  }
  return { contenders, notes };
}

interface Measured {
  latencyMs: number[];
  requestsPerSecond: number[];
  /** CPU microseconds of the gateway's processes per streamed token. */
  cpuMicrosPerToken: number[];
  /** CPU microseconds of the gateway's processes per short request under load. */
  cpuMicrosPerRequest: number[];
}

async function load(
  contender: Contender,
  connections: number,
  seconds: number,
): Promise<{ requestsPerSecond: number; count: number }> {
  const agent = new http.Agent({ keepAlive: true, maxSockets: connections });
  const body = JSON.stringify(contender.body(1, false));
  const begin = performance.now();
  const end = begin + seconds * 1000;
  let count = 0;
  await Promise.all(
    Array.from({ length: connections }, async () => {
      while (performance.now() < end) {
        await sendChecked(agent, contender, body);
        count++;
      }
    }),
  );
  const elapsed = (performance.now() - begin) / 1000;
  agent.destroy();
  return { requestsPerSecond: count / elapsed, count };
}

export async function gateway(
  options: GatewayOptions,
  log: (line: string) => void,
): Promise<{ report: Report; versions: Record<string, string> }> {
  const work = mkdtempSync(path.join(os.tmpdir(), 'bench-gateway-'));
  const trees: ProcessTree[] = [];
  try {
    const { contenders, notes } = await startContenders(work, trees, log);
    const measured = new Map<string, Measured>(
      contenders.map((c) => [
        c.name,
        { latencyMs: [], requestsPerSecond: [], cpuMicrosPerToken: [], cpuMicrosPerRequest: [] },
      ]),
    );
    const of = (c: Contender) => measured.get(c.name) as Measured;
    const agents = new Map(contenders.map((c) => [c.name, new http.Agent({ keepAlive: true, maxSockets: 1 })]));
    const one = (c: Contender) => sendChecked(agents.get(c.name) as http.Agent, c, JSON.stringify(c.body(1, false)));
    log('warming up');
    for (const c of contenders) for (let i = 0; i < Math.min(200, options.requests); i++) await one(c);

    for (let round = 0; round < options.rounds; round++) {
      for (let i = 0; i < options.requests; i++) for (const c of contenders) of(c).latencyMs.push((await one(c)).ms);
      for (const c of contenders) {
        const before = c.tree?.cpuMs() ?? Number.NaN;
        const { requestsPerSecond, count } = await load(c, options.connections, options.loadSeconds);
        of(c).requestsPerSecond.push(requestsPerSecond);
        of(c).cpuMicrosPerRequest.push((((c.tree?.cpuMs() ?? Number.NaN) - before) * 1000) / count);
      }
      for (const c of contenders) {
        if (!c.tree) continue;
        const before = c.tree.cpuMs();
        const result = await stream({
          url: c.url + c.path,
          headers: c.headers,
          body: c.body(options.streamTokens, true),
        });
        if (result.completionTokens !== options.streamTokens)
          throw new Error(`${c.name} streamed ${result.completionTokens} tokens`);
        of(c).cpuMicrosPerToken.push(((c.tree.cpuMs() - before) * 1000) / options.streamTokens);
      }
      log(`round ${round + 1} done`);
    }
    for (const agent of agents.values()) agent.destroy();
    return {
      report: gatewayReport(contenders, measured, options, notes),
      versions: { '@portkey-ai/gateway': PORTKEY },
    };
  } finally {
    for (const tree of trees) await tree.stop();
    rmSync(work, { recursive: true, force: true });
  }
}

function gatewayReport(
  contenders: Contender[],
  measured: Map<string, Measured>,
  options: GatewayOptions,
  notes: string[],
): Report {
  const rows = contenders.map((c) => {
    const m = measured.get(c.name) as Measured;
    const base = c.direct === undefined ? undefined : (measured.get(c.direct) as Measured).latencyMs;
    const added = (q: number) => (base === undefined ? '' : number(quantile(m.latencyMs, q) - quantile(base, q)));
    return [
      c.name,
      number(median(m.latencyMs)),
      number(quantile(m.latencyMs, 0.99)),
      added(0.5),
      added(0.99),
      spread(summarize(m.requestsPerSecond)),
      c.tree ? spread(summarize(m.cpuMicrosPerRequest)) : '',
      c.tree ? spread(summarize(m.cpuMicrosPerToken)) : '',
    ];
  });
  const ours = measured.get('modelfactory') as Measured;
  const portkey = [...measured].find(([name]) => name.startsWith('Portkey'))?.[1];
  const direct = (name: string) => (measured.get(name) as Measured).latencyMs;
  const addedOurs = median(ours.latencyMs) - median(direct('direct (daemon protocol)'));
  const addedPortkey = portkey ? median(portkey.latencyMs) - median(direct('direct (OpenAI)')) : Number.NaN;
  return {
    name: 'gateway',
    tables: [
      {
        title: `Gateways before a scripted upstream, ${options.rounds} rounds of ${options.requests} requests in turn`,
        columns: [
          'what',
          'p50 ms',
          'p99 ms',
          'added p50 ms',
          'added p99 ms',
          `req/s, ${options.connections} connections`,
          'CPU µs/request',
          'CPU µs/streamed token',
        ],
        rows,
      },
    ],
    checks: portkey
      ? [{ name: 'added latency p50, ours ÷ Portkey', value: addedOurs / addedPortkey, target: { op: '<=', value: 1 } }]
      : [],
    notes: [
      ...notes,
      'Ours checks an API key, request, token and concurrency limits and a budget, reserves and settles; Portkey here only forwards. "Added" is the difference to the same upstream called directly in the same turn: at the quantile, not per request. Load generator and upstream share the cores with the gateway.',
    ],
    data: { options, measured: Object.fromEntries(measured) },
  };
}

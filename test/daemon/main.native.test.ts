import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { Adapter, DaemonHealth, GenerateEvent } from '../../daemon/protocol.ts';
import { writePeftAdapter } from '../support/safetensors-writer.ts';
import { type TinyModel, writeTinyModel } from '../support/tiny-models.ts';
import { type DaemonProcess, readEvents, startDaemon, TOKEN, textOf } from './daemon-process.ts';

const folder = mkdtempSync(join(tmpdir(), 'mf-daemon-'));
let model: TinyModel;
let daemon: DaemonProcess | null = null;
let folders = 0;

beforeAll(() => {
  model = writeTinyModel('llama', join(folder, 'tiny.gguf'), { context: 2048 });
  for (let seed = 1; seed <= 4; seed += 1) {
    writePeftAdapter(join(folder, `adapter${seed}`), model, { seed, rank: 2 * seed, deviation: 0.3 });
  }
});
afterEach(async () => {
  daemon?.child.kill('SIGKILL');
  await daemon?.exited;
  daemon = null;
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function start(env: Record<string, string> = {}): Promise<DaemonProcess> {
  folders += 1;
  daemon = await startDaemon({
    MODELFACTORY_DATA: join(folder, `data${folders}`),
    MODELFACTORY_BASE: model.path,
    ...env,
  });
  return daemon;
}

let requests = 0;
function body(extra: object = {}) {
  requests += 1;
  return {
    requestId: `req${requests}`,
    callerHash: 'c'.repeat(64),
    adapter: null,
    prompt: { kind: 'text', text: 'a prompt of some words that the tiny model has never seen' },
    sampling: { temperature: 0, ignoreEos: true },
    maxTokens: 30,
    price: { inputMicrosPerMillion: 1_000_000, outputMicrosPerMillion: 1_000_000, currency: 'USD' },
    ...extra,
  };
}
const adapterPath = (seed: number) => join(folder, `adapter${seed}`);
const add = (d: DaemonProcess, name: string, seed: number, replace = false) =>
  d.call('POST', '/adapters', { name, source: adapterPath(seed), replace });
const last = (events: GenerateEvent[]) => events.at(-1) as GenerateEvent;
const json = async <T>(response: Promise<Response>) => (await (await response).json()) as T;

/** Reads a stream until its first delta; the rest can be read later. */
async function begin(response: Response): Promise<{ rest(): Promise<GenerateEvent[]> }> {
  const reader = (response.body as ReadableStream<Uint8Array>).getReader();
  let text = '';
  while (!text.includes('"delta"')) text += Buffer.from((await reader.read()).value ?? []).toString();
  return {
    async rest() {
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        text += Buffer.from(value).toString();
      }
      return text
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as GenerateEvent);
    },
  };
}

describe('daemon process', () => {
  it('loads, replaces and removes adapters while streams run; those in flight finish on the weights they began with', async () => {
    const d = await start({ MODELFACTORY_SLOTS: '2' });
    expect((await d.generate(body({ adapter: 'later' }))).status).toBe(404);
    for (const seed of [1, 2, 3]) expect((await add(d, `a${seed}`, seed)).status).toBe(200);
    const alone = new Map<string, string>();
    for (const name of ['a1', 'a2', 'a3'])
      alone.set(name, textOf(await readEvents(await d.generate(body({ adapter: name, maxTokens: 400 })))));
    expect(new Set(alone.values()).size).toBe(3);

    // More adapters than slots, all at once; and changes under way.
    const streams = await Promise.all(
      ['a1', 'a2', 'a3', 'a1'].map(async (adapter) => ({
        adapter,
        response: await d.generate(body({ adapter, maxTokens: 400, callerHash: 'd'.repeat(64) })),
      })),
    );
    const running = await Promise.all(
      streams.map(async ({ adapter, response }) => ({ adapter, stream: await begin(response) })),
    );
    const before = await json<Adapter>(d.call('GET', '/adapters/a1'));
    expect((await add(d, 'a1', 4)).status).toBe(409);
    const after = await json<Adapter>(add(d, 'a1', 4, true));
    expect(after.digest).not.toBe(before.digest);
    expect((await d.call('DELETE', '/adapters/a2')).status).toBe(200);
    for (const { adapter, stream } of running) {
      const events = await stream.rest();
      expect(last(events).type).toBe('end');
      expect(textOf(events)).toBe(alone.get(adapter));
    }
    expect((await d.generate(body({ adapter: 'a2' }))).status).toBe(404);
    const replaced = await readEvents(await d.generate(body({ adapter: 'a1', maxTokens: 400 })));
    expect(textOf(replaced)).not.toBe(alone.get('a1'));
    expect(replaced[0]).toMatchObject({ type: 'start', adapterDigest: after.digest, cachedTokens: 0 });

    const loaded = await json<Adapter>(d.call('POST', '/adapters/a3/load'));
    expect(loaded.tier).toBe('slot');
    expect((await json<Adapter>(d.call('POST', '/adapters/a3/unload'))).tier).toBe('disk');
    expect((await json<Adapter>(d.call('POST', '/adapters/a3/pin'))).pinned).toBe(true);
    expect((await d.call('POST', '/adapters/a1/pin')).status).toBe(503);
    const metrics = await (await d.call('GET', '/metrics')).text();
    expect(metrics).toContain('modelfactory_adapter_loaded{adapter="a1",level="slot"} 1');
  });

  it('serves requests that waited for an adapter which was removed or replaced meanwhile, then clears its files away', async () => {
    // One slot, and host memory for one adapter: who waits must read its weights from disk when its turn comes.
    const targets = Object.values(model.targets);
    const oneRank = model.layers * targets.reduce((sum, size) => sum + size.in + size.out, 0) * 2;
    const d = await start({ MODELFACTORY_SLOTS: '1', MODELFACTORY_ADAPTER_HOST_BYTES: String(9 * oneRank) });
    const adapters: Adapter[] = [];
    for (const seed of [1, 2, 3]) adapters.push(await json<Adapter>(add(d, `w${seed}`, seed)));
    // Long enough for all that follows, on any machine; it is broken off at the end.
    const gone = new AbortController();
    const long = await begin(await d.generate(body({ adapter: 'w1', maxTokens: 1900, n: 8 }), gone.signal));
    const waiting = ['w2', 'w3', 'w2'].map((adapter) =>
      d.generate(body({ adapter, callerHash: 'e'.repeat(64) })).then(readEvents),
    );
    await expect.poll(async () => (await json<DaemonHealth>(d.call('GET', '/health'))).queue.waiting).toBe(3);
    const lora = async () =>
      (await (await d.call('GET', '/metrics')).text())
        .split('\n')
        .filter((l) => l.startsWith('vllm:lora_requests_info'));
    expect(await lora()).toEqual([
      expect.stringMatching(
        /^vllm:lora_requests_info\{max_lora="1",running_lora_adapters="w1",waiting_lora_adapters="w2,w3"\} 1\.?\d+/,
      ),
    ]);
    expect((await d.call('DELETE', '/adapters/w2')).status).toBe(200);
    expect((await add(d, 'w3', 4, true)).status).toBe(200);
    gone.abort();
    await expect(long.rest()).rejects.toThrow();
    for (const events of await Promise.all(waiting)) expect(last(events)).toMatchObject({ type: 'end' });
    expect(await lora()).toEqual([expect.stringContaining('running_lora_adapters="",waiting_lora_adapters=""')]);
    const root = join(folder, `data${folders}`, 'adapters');
    await expect
      .poll(() => readdirSync(root).filter((name) => adapters.slice(1).some(({ digest }) => digest === name)))
      .toEqual([]);
  });

  it('says in its log, and only there, why an adapter could not be loaded', async () => {
    const d = await start();
    const { digest } = await json<Adapter>(add(d, 'lost', 1));
    expect((await d.call('POST', '/adapters/lost/load')).status).toBe(200);
    expect((await d.call('POST', '/adapters/lost/unload')).status).toBe(200);
    rmSync(join(folder, `data${folders}`, 'adapters', digest, 'adapter_model.safetensors'));
    const answer = await d.call('POST', '/adapters/lost/load');
    expect(answer.status).toBe(503);
    const told = await answer.text();
    expect(told).not.toMatch(/ENOENT|adapter_model|\/adapters\//);
    await expect.poll(() => d.output.find((line) => line.includes('could not be loaded'))).toBeDefined();
    const line = d.output.find((text) => text.includes('could not be loaded')) as string;
    expect(JSON.parse(line)).toMatchObject({ adapters: ['lost'], digest, cause: expect.stringContaining('ENOENT') });
  });

  it('takes an adapter as an upload', async () => {
    const d = await start();
    const form = new FormData();
    form.set('name', 'ignored');
    for (const file of ['adapter_config.json', 'adapter_model.safetensors']) {
      form.append('files', new Blob([readFileSync(join(adapterPath(1), file))]), file);
    }
    const send = (query: string, data: FormData) =>
      fetch(`${d.url}/adapters${query}`, { method: 'POST', headers: { authorization: `Bearer ${TOKEN}` }, body: data });
    const answer = await send('?name=uploaded', form);
    expect(answer.status).toBe(200);
    expect(await answer.json()).toMatchObject({ name: 'uploaded', rankMax: 2 });
    expect(last(await readEvents(await d.generate(body({ adapter: 'uploaded' })))).type).toBe('end');
    const broken = new FormData();
    broken.set('name', 'broken');
    broken.append('files', new Blob(['{}']), 'adapter_config.json');
    expect((await send('', broken)).status).toBe(400);
    expect((await json<{ data: Adapter[] }>(d.call('GET', '/adapters'))).data.map((a) => a.name)).toEqual(['uploaded']);
  });

  it('when told to stop, tells those in flight, receipts them, and starts again with everything there', async () => {
    const d = await start();
    await add(d, 'kept', 1);
    const ended = await readEvents(await d.generate(body()));
    const slow = body({ maxTokens: 1900, n: 8 });
    const stream = await begin(await d.generate(slow));
    d.child.kill('SIGTERM');
    const events = await stream.rest();
    // Either it ended in the time that a stop gives, or it was told.
    const end = last(events);
    expect(['end', 'error']).toContain(end.type);
    expect(await d.exited).toBe(0);
    const again = await start({ MODELFACTORY_DATA: join(folder, `data${folders}`) });
    const receipt = await again.call('GET', `/receipts/by-request/${slow.requestId}`);
    expect(receipt.status).toBe(200);
    expect((await json<DaemonHealth>(again.call('GET', '/health'))).logSize).toBe(2);
    const { receiptId } = last(ended) as { receiptId: string };
    expect((await again.call('GET', `/receipts/${receiptId}`)).status).toBe(200);
    expect((await json<{ data: Adapter[] }>(again.call('GET', '/adapters'))).data).toHaveLength(1);
  });

  it('comes back after kill -9, and lets no second daemon use its folder meanwhile', async () => {
    const d = await start();
    const data = join(folder, `data${folders}`);
    const done = await readEvents(await d.generate(body()));
    await expect(startDaemon({ MODELFACTORY_DATA: data, MODELFACTORY_BASE: model.path })).rejects.toThrow(
      /exit 78: .*Another daemon/s,
    );
    const stream = await begin(await d.generate(body({ maxTokens: 1900, n: 8 })));
    d.child.kill('SIGKILL');
    await expect(stream.rest()).rejects.toThrow();
    await d.exited;
    const again = await start({ MODELFACTORY_DATA: data });
    const { receiptId } = last(done) as { receiptId: string };
    expect((await again.call('GET', `/receipts/${receiptId}`)).status).toBe(200);
    // The whole log is audited after the start; both receipts are there, or the one that was acknowledged.
    await expect
      .poll(async () => (await json<DaemonHealth>(again.call('GET', '/health'))).logAudit)
      .toMatchObject({ status: 'ok', detail: '' });
    expect(await (await again.call('GET', '/metrics')).text()).toContain('modelfactory_receipt_audit{status="ok"} 1');
    expect(last(await readEvents(await again.generate(body()))).type).toBe('end');
  });

  it('refuses to start where it could not be safe or sound, and says why', async () => {
    const truncated = join(folder, 'truncated.gguf');
    writeFileSync(truncated, readFileSync(model.path));
    truncateSync(truncated, statSync(truncated).size - 5000);
    const cases: [Record<string, string>, RegExp][] = [
      [
        { MODELFACTORY_DAEMON_HOST: '0.0.0.0', MODELFACTORY_DAEMON_TOKEN: '' },
        /exit 78: .*MODELFACTORY_DAEMON_TOKEN is not set/s,
      ],
      [{ MODELFACTORY_DAEMON_TOKEN: 'short' }, /exit 78: .*needs 32/s],
      [{ MODELFACTORY_DEVICE: 'abacus' }, /exit 78: .*may be auto, cpu/s],
      [{ MODELFACTORY_BASE: truncated }, /exit 78: error: /s],
      [{ MODELFACTORY_BASE: join(folder, 'missing.gguf') }, /exit 78: .*no file/s],
    ];
    for (const [env, message] of cases) await expect(start(env)).rejects.toThrow(message);
  });

  it('makes a token of its own for this machine, readable by nobody else', async () => {
    const data = join(folder, 'token-data');
    mkdirSync(data);
    const d = await start({ MODELFACTORY_DATA: data, MODELFACTORY_DAEMON_TOKEN: '' });
    const file = join(data, 'keys', 'daemon.token');
    expect(statSync(file).mode & 0o777).toBe(0o600);
    expect((await d.call('GET', '/model')).status).toBe(401);
    const own = await fetch(`${d.url}/model`, { headers: { authorization: `Bearer ${readFileSync(file, 'utf8')}` } });
    expect(await own.json()).toMatchObject({ id: 'tiny', architecture: 'llama', contextTokens: 2048 });
  });
});

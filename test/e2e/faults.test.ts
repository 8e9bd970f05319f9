/** What callers get wrong and what breaks, against the running product: what each caller is told, and that nobody else is harmed. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createClient } from '@libsql/client';
import type OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { costMicrosOf, type Receipt } from '../../daemon/protocol.ts';
import { verifyText } from '../../daemon/receipts/verify.ts';
import { randomAdapter, SMOLLM2_135M } from '../../loadtest/bench/adapters.ts';
import { defaultModelPath, SKIP_REASON } from '../support/model.ts';
import {
  encodeSafetensors,
  type PeftAdapterOptions,
  type PeftShape,
  peftAdapter,
} from '../support/safetensors-writer.ts';
import { SHAPE } from './adapters.ts';
import { BackgroundStream } from './background.ts';
import { BASE, type CallOptions, PRICE, Product, until } from './product.ts';

const model = await defaultModelPath();
let product: Product;

const INVALID = 'invalid_request_error';
const TOO_LONG = 'context_length_exceeded';

interface Case {
  name: string;
  method: string;
  path: string;
  /** Called when its turn comes: some are large. */
  body: unknown;
  options: CallOptions;
  status: number;
  code: string;
  /** The message says so. */
  says: RegExp;
}

const CHAT = '/v1/chat/completions';
const chat = (extra: object) => ({ model: BASE, messages: [{ role: 'user', content: 'Hi' }], max_tokens: 4, ...extra });
const user = (content: unknown) => chat({ messages: [{ role: 'user', content }] });
const schema = (value: object) =>
  chat({ response_format: { type: 'json_schema', json_schema: { name: 's', schema: value } } });
const raw = (fields: string) => `{"model":"${BASE}","messages":[{"role":"user","content":"x"}],${fields}}`;

/** A PEFT folder as the form that an upload sends; `cut` bytes are missing at the end of the weights. */
function peftForm(shape: PeftShape, options: PeftAdapterOptions & { cut?: number } = {}): FormData {
  const { config, tensors } = peftAdapter(shape, { rank: 2, layers: [0, 1], ...options });
  const weights = encodeSafetensors(tensors);
  return form({
    'adapter_config.json': JSON.stringify(config),
    'adapter_model.safetensors': weights.subarray(0, weights.length - (options.cut ?? 0)),
  });
}
function form(files: Record<string, string | Buffer>): FormData {
  const data = new FormData();
  for (const [name, content] of Object.entries(files))
    data.append('files', new Blob([content as Uint8Array<ArrayBuffer>]), name);
  return data;
}
/** Another base: half as wide, with other layers. */
const OTHER: PeftShape = {
  layers: 2,
  targets: Object.fromEntries(
    Object.entries(SHAPE.targets).map(([name, { in: a, out: b }]) => [name, { in: a / 2, out: b / 2 }]),
  ) as PeftShape['targets'],
};
const gguf = () => randomAdapter({ ...SMOLLM2_135M, layers: 2 }, 2, 1).file;
const LONG_HEADER = Buffer.from([255, 255, 255, 255, 255, 255, 255, 127]);

type Row = [name: string, body: unknown, status: number, code: string, more?: Partial<Case>];
const post = (path: string, rows: Row[]): Case[] =>
  rows.map(([name, body, status, code, more]) => {
    return { name, method: 'POST', path, body, options: {}, status, code, says: /.{20,}/s, ...more };
  });
const get = (name: string, path: string, status: number, code: string): Case[] =>
  post(path, [[name, undefined, status, code, { method: 'GET' }]]);
const upload = (name: string, body: () => FormData, says: RegExp, code = 'adapter_invalid'): Case[] =>
  post('/api/adapters?name=bad', [[name, body, 400, code, { says }]]);

const CASES: Case[] = [
  ...post(CHAT, [
    ['malformed JSON', '{"model": "x", "messages": [', 400, 'invalid_json'],
    ['no body', '', 400, 'invalid_json'],
    ['a body that is no object', '[]', 400, 'invalid_type'],
    ['nesting that overflows stacks', '['.repeat(100_000), 400, 'invalid_json'],
    ['broken UTF-8', Buffer.from([0x7b, 0x22, 0xff, 0xfe, 0x22, 0x7d]), 400, 'invalid_utf8'],
    ['half a surrogate pair', user('\ud800'), 400, INVALID, { says: /not valid Unicode/ }],
    ['messages of a wrong type', chat({ messages: 'Hi' }), 400, 'invalid_type'],
    ['content of a wrong type', user(7), 400, 'invalid_type'],
    ['a picture', user([{ type: 'image_url', image_url: { url: 'x' } }]), 400, 'unsupported_content'],
    ['an unknown model', chat({ model: 'gpt-9' }), 404, 'model_not_found'],
    ['a path as model', chat({ model: '../../admin.key' }), 404, 'model_not_found'],
    ['a prompt longer than the context', user('word '.repeat(20_000)), 400, TOO_LONG, { says: /length is 8192 tok/ }],
    ['a prompt of eight million characters', () => user('word '.repeat(1_600_000)), 400, TOO_LONG],
    ['max_tokens beyond the context', chat({ max_tokens: 8_192 }), 400, TOO_LONG],
    ['max_tokens negative', chat({ max_tokens: -1 }), 400, 'integer_below_min_value'],
    ['max_tokens huge', chat({ max_tokens: 1e18 }), 400, 'integer_above_max_value'],
    ['max_tokens infinite', raw('"max_tokens":1e999'), 400, 'invalid_type'],
    ['n zero', chat({ n: 0 }), 400, 'integer_below_min_value'],
    ['n beyond the limit', chat({ n: 1_000 }), 400, 'integer_above_max_value'],
    ['a negative temperature', chat({ temperature: -1 }), 400, 'decimal_below_min_value'],
    ['a huge seed', raw('"seed":1e300'), 400, 'decimal_above_max_value'],
    ['a bias on a token that does not exist', chat({ logit_bias: { 999999: 1 } }), 400, INVALID],
    ['a body of more than 10 MB', () => raw(`"x":"${'x'.repeat(10 * 2 ** 20)}"`), 413, 'request_too_large'],
    [
      'headers of 40 kB',
      chat({}),
      431,
      'headers_too_large',
      { options: { headers: { 'x-long': 'x'.repeat(40_000) } } },
    ],
    ['a schema of a type that does not exist', schema({ type: 'spaceship' }), 400, 'grammar_invalid'],
    ['a schema that refers to nothing', schema({ $ref: '#/$defs/none' }), 400, 'grammar_invalid'],
    ['a schema on another server', schema({ $ref: 'https://127.0.0.1:1/x.json' }), 400, 'grammar_invalid'],
    ['a schema that asks for a million items', schema({ type: 'array', minItems: 1e6 }), 400, 'grammar_invalid'],
    ['a schema of 100 kB', schema({ enum: ['x'.repeat(100_000)] }), 400, INVALID],
    ['no key', chat({}), 401, 'invalid_api_key', { options: { headers: { authorization: '' } } }],
    ['a wrong key', chat({}), 401, 'invalid_api_key', { options: { key: `mf-${'x'.repeat(43)}` } }],
  ]),
  ...post('/v1/completions', [
    ['a token that does not exist', { model: BASE, prompt: [1, 49_152] }, 400, INVALID],
    ['a token that is no number of tokens', { model: BASE, prompt: [1, 1e30] }, 400, 'integer_above_max_value'],
  ]),
  ...post('/v1/embeddings', [
    ['an input longer than the context', { model: BASE, input: 'word '.repeat(9_000) }, 400, TOO_LONG],
  ]),
  ...get('an unknown address', '/v1/nothing', 404, 'unknown_url'),
  ...get('a wrong method', CHAT, 405, 'method_not_allowed'),
  ...get('a receipt that does not exist', '/v1/receipts/rcpt_0', 404, 'receipt_not_found'),
  ...get('a log that is not there yet', '/log/consistency?from=1&to=999999', 400, INVALID),
  ...upload('safetensors without their end', () => peftForm(SHAPE, { cut: 1_000 }), /bytes|ends|short/i),
  ...upload(
    'a safetensors header longer than the file',
    () => form({ 'adapter_config.json': '{}', 'adapter_model.safetensors': LONG_HEADER }),
    /./,
  ),
  ...upload('a GGUF without its end', () => form({ 'a.gguf': gguf().subarray(0, -20_000) }), /./),
  ...upload('the beginning of a GGUF', () => form({ 'a.gguf': gguf().subarray(0, 5_000) }), /./),
  ...upload(
    'a base model where an adapter belongs',
    () => form({ 'a.gguf': readFileSync(model as string).subarray(0, 4_000_000) }),
    /./,
  ),
  ...upload('an adapter for another base', () => peftForm(OTHER), /base|model|expects/i),
  ...upload('DoRA', () => peftForm(SHAPE, { config: { use_dora: true } }), /DoRA/),
  ...upload('modules_to_save', () => peftForm(SHAPE, { config: { modules_to_save: ['lm_head'] } }), /modules_to_save/),
  ...upload('no adapter at all', () => form({ 'holiday.txt': 'sun' }), /holiday\.txt|adapter/, INVALID),
  ...post('/api/adapters', [
    ['an adapter from a path that does not exist', { name: 'bad', source: '/nowhere/at/all' }, 400, INVALID],
    ['an adapter name that climbs', { name: '../bad', source: 'hf:a/b' }, 400, 'invalid_value'],
  ]),
  ...post('/api/adapters/none/load', [['loading what does not exist', {}, 404, 'model_not_found']]),
];

async function errorOf(
  response: Response,
): Promise<{ message: string; type: string; param: string | null; code: string | null }> {
  const { error } = (await response.json()) as {
    error: { message: string; type: string; param: string | null; code: string | null };
  };
  return error;
}

const receiptOf = async (id: string): Promise<Receipt> =>
  JSON.parse((await until(`the receipt ${id}`, () => product.receipt(id))).entry) as Receipt;

/** A stream that has begun: its receipt's id and a way to the rest of it. */
async function beginStream(extra: object = {}, options: CallOptions = {}) {
  const response = await product.call(
    'POST',
    CHAT,
    chat({ stream: true, max_tokens: 3_000, ignore_eos: true, ...extra }),
    options,
  );
  expect(response.status).toBe(200);
  const reader = (response.body as ReadableStream<Uint8Array>).getReader();
  let text = '';
  const more = async () => {
    const { value, done } = await reader.read();
    text += Buffer.from(value ?? []).toString();
    return !done;
  };
  while (text.split('\n\n').length < 8) await more();
  return {
    receiptId: response.headers.get('x-receipt-id') as string,
    seen: () => text.split('"content":').length,
    /** All events up to the end, or to where the connection broke. */
    async rest(): Promise<{ events: string[]; broke: boolean }> {
      let broke = false;
      try {
        while (await more());
      } catch {
        broke = true;
      }
      return {
        events: text
          .trim()
          .split('\n\n')
          .map((event) => event.replace(/^data: /, '')),
        broke,
      };
    },
  };
}

/** The daemon leaves 64 MB of a disk alone. One that is a little larger, where it can be made: */
function mountSmallDisk(folder: string): boolean {
  try {
    mkdirSync(folder, { recursive: true });
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=70m', 'tmpfs', folder], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

/** 78 MB of zeros in the form of an adapter. */
function largeForm(): FormData {
  const rank = 64;
  const { config, tensors } = peftAdapter(SHAPE, { rank: 1, config: { r: rank } });
  for (const tensor of Object.values(tensors)) {
    tensor.shape = tensor.shape.map((size) => (size === 1 ? rank : size));
    tensor.bytes = Buffer.alloc(tensor.bytes.length * rank);
  }
  return form({
    'adapter_config.json': JSON.stringify(config),
    'adapter_model.safetensors': encodeSafetensors(tensors),
  });
}

describe.skipIf(model === null)(`faults${model === null ? ` (${SKIP_REASON})` : ''}`, () => {
  let client: OpenAI;
  let background: BackgroundStream;
  let disk = '';

  beforeAll(async () => {
    product = await Product.start({}, (dataDir) => {
      const folder = join(dataDir, 'adapters');
      if (mountSmallDisk(folder)) disk = folder;
    });
    client = product.client();
    background = new BackgroundStream(client, BASE);
    await background.start();
  });
  afterAll(async () => {
    await background?.stop();
    if (disk !== '') execFileSync('umount', ['-l', disk]);
    await product?.stop();
  });

  describe('bad input', () => {
    it.each(CASES)('$name: $status $code', async ({ method, path, body, options, status, code, says }) => {
      const response = await product.call(method, path, typeof body === 'function' ? body() : body, options);
      const error = await errorOf(response);
      expect({ status: response.status, type: error.type, code: error.code }).toEqual({ status, type: INVALID, code });
      expect(error.message).toMatch(says);
      expect(error.message).not.toMatch(/\n {4}at |node_modules|\.ts:\d|exception/);
      expect(response.headers.get('x-request-id')).toBeTruthy();
      await background.isAlive();
    });

    it('has left nothing behind: no adapter, no restart, and the next request works', async () => {
      expect((await product.json<{ data: unknown[] }>('GET', '/api/adapters')).data).toEqual([]);
      expect((await product.health()).supervisor).toMatchObject({ daemon: { restarts: 0 }, gateway: { restarts: 0 } });
      expect((await client.chat.completions.create(chat({}) as never)).choices).toHaveLength(1);
      await background.isAlive();
    });
  });

  describe('faults', () => {
    it('a client that goes away mid-stream: generation stops, is receipted and charged; others go on', async () => {
      const key = await product.makeKey({ budget_micros: 1_000_000 });
      const gone = new AbortController();
      const stream = await beginStream({}, { key: key.key, signal: gone.signal });
      gone.abort();
      const receipt = await receiptOf(stream.receiptId);
      // Between the last byte that was read and the hang-up lie steps that nobody has counted, not a whole answer of 3,000.
      expect(receipt).toMatchObject({ outcome: 'cancelled' });
      expect(receipt.completionTokens).toBeLessThan(1_500);
      expect(receipt.costMicros).toBe(costMicrosOf(PRICE, receipt.promptTokens, receipt.completionTokens));
      await until('the cost is settled', async () => {
        const { spent_micros, reserved_micros } = await product.key(key.id);
        return spent_micros === receipt.costMicros && reserved_micros === 0;
      });
      await background.isAlive();
    });

    it('a full disk: the adapter is refused with a sentence, nothing of it stays, and one that fits is taken', async ({
      skip,
    }) => {
      skip(disk === '', 'mounting a small disk needs root');
      const large = await product.call('POST', '/api/adapters?name=large', largeForm());
      const error = await errorOf(large);
      expect([large.status, error.type, error.code]).toEqual([503, 'server_error', 'adapter_unavailable']);
      expect(error.message).toMatch(/disk/);
      await background.isAlive();
      expect((await product.call('POST', '/api/adapters?name=small', peftForm(SHAPE))).status).toBe(201);
      const { data } = await product.json<{ data: { name: string }[] }>('GET', '/api/adapters');
      expect(data.map(({ name }) => name)).toEqual(['small']);
      expect((await client.chat.completions.create(chat({ model: 'small' }) as never)).choices).toHaveLength(1);
    });

    it('the database of the log is locked for a while: answers wait for their receipts, and none is lost', async () => {
      const other = createClient({ url: `file:${join(product.dataDir, 'daemon.db')}` });
      const lock = await other.transaction('write');
      const answers = [1, 2, 3].map(() => client.chat.completions.create(chat({}) as never).withResponse());
      let early = false;
      void Promise.race(answers).then(() => {
        early = true;
      });
      await new Promise((resolve) => setTimeout(resolve, 700));
      expect(early).toBe(false);
      await background.isAlive();
      await lock.rollback();
      other.close();
      for (const { response } of await Promise.all(answers)) {
        const bundle = await product.receipt(response.headers.get('x-receipt-id') as string);
        expect(verifyText(JSON.stringify(bundle), { vkey: product.vkey })).toMatchObject({ ok: true });
      }
      await background.isAlive();
    });

    it('the daemon killed mid-stream: its callers are told, it comes back, and no receipt is lost', async () => {
      const key = await product.makeKey({ budget_micros: 1_000_000 });
      const acknowledged = await Promise.all([1, 2, 3, 4].map(() => product.call('POST', CHAT, chat({}))));
      const ids = acknowledged.map((response) => response.headers.get('x-receipt-id') as string);
      const before = (await (await product.call('GET', '/log/checkpoint')).text()).split('\n');
      const streams = await Promise.all([beginStream({}, { key: key.key }), beginStream()]);

      process.kill(product.pid('daemon'), 'SIGKILL');
      for (const stream of streams) {
        const { events, broke } = await stream.rest();
        expect(broke).toBe(false);
        expect(JSON.parse(events.at(-1) as string)).toEqual({
          error: { message: expect.stringMatching(/again/), type: 'server_error', param: null, code: 'engine_failed' },
        });
      }
      await expect(background.failure()).resolves.toMatchObject({ code: 'engine_failed' });
      const down = await until('/health says so', async () => {
        const health = await product.health();
        return health.status === 'unavailable' ? health : null;
      });
      expect(down.supervisor.daemon?.state).toMatch(/waiting_to_restart|starting/);
      const refused = await product.call('POST', CHAT, chat({}));
      expect([refused.status, (await errorOf(refused)).code]).toEqual([503, 'engine_unavailable']);
      expect(refused.headers.get('retry-after')).toMatch(/^\d+$/);

      // The daemon answers a moment before its supervisor has written that down.
      const back = await until('the daemon is back', async () => {
        const health = await product.health();
        return health.status === 'ready' && health.supervisor.daemon?.state === 'ready' ? health : null;
      });
      expect(back.supervisor).toMatchObject({
        daemon: { state: 'ready', restarts: 1 },
        gateway: { restarts: 0 },
      });
      const [next] = (await client.chat.completions.create(chat({ model: disk === '' ? BASE : 'small' }) as never))
        .choices;
      expect(next?.message.content).toBeTruthy();
      for (const id of ids) {
        expect(verifyText(JSON.stringify(await product.receipt(id)), { vkey: product.vkey })).toMatchObject({
          ok: true,
        });
      }
      const after = (await (await product.call('GET', '/log/checkpoint')).text()).split('\n')[1];
      const growth = await product.json<{ oldCheckpoint: string }>(
        'GET',
        `/log/consistency?from=${before[1]}&to=${after}`,
      );
      expect(growth.oldCheckpoint.split('\n').slice(0, 3)).toEqual(before.slice(0, 3));
      expect(verifyText(JSON.stringify(growth), { vkey: product.vkey })).toMatchObject({ ok: true, pinned: true });
      await until('what was reserved for the dead is free again', async () => {
        return (await product.key(key.id)).reserved_micros === 0;
      });
    });

    it('the gateway killed mid-stream: it comes back, and what was reserved is settled by the log', async () => {
      const key = await product.makeKey({ budget_micros: 1_000_000 });
      const before = (await product.health()).supervisor;
      const stream = await beginStream({}, { key: key.key });
      expect((await product.key(key.id)).reserved_micros).toBeGreaterThan(0);
      process.kill(product.pid('gateway'), 'SIGKILL');
      expect((await stream.rest()).broke).toBe(true);
      await until('the gateway is back', async () => (await product.health()).status === 'ready');
      expect((await product.health()).supervisor).toMatchObject({
        gateway: { restarts: 1 },
        daemon: { restarts: before.daemon?.restarts },
      });

      // The daemon saw its caller go, and stopped.
      const receipt = await receiptOf(stream.receiptId);
      expect(receipt).toMatchObject({ outcome: 'cancelled' });
      await until('the reservation is settled', async () => {
        const { spent_micros, reserved_micros } = await product.key(key.id);
        return reserved_micros === 0 && spent_micros === receipt.costMicros;
      });
      expect((await product.client(key.key).chat.completions.create(chat({}) as never)).choices).toHaveLength(1);
    });
  });
});

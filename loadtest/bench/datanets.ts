/**
 * `npm run bench -- datanets`: a Datanet of 100,000 rows from upload to published version, search in it, a catalogue of 10,000 Datanets,
 * the memory of the gateway while a large file comes in, and what it costs to find out who may do what. Against the running product.
 */
import { createWriteStream, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { performance } from 'node:perf_hooks';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createClient } from '@libsql/client';
import { readState } from '../../bin/supervisor/state.ts';
import { verifyText } from '../../daemon/receipts/verify.ts';
import { authorizationCosts } from './datanet-authorization.ts';
import { type Api, create, type Made, makeUser, read, send } from './datanet-client.ts';
import { datanetReport, quantilesOf } from './datanet-report.ts';
import { catalogued, chats, longChats, WordCount } from './datanet-text.ts';
import { type OurServer, sleep, startOurs } from './processes.ts';
import { type Random, seededRandom } from './random.ts';
import { number, type Report } from './report.ts';
import { quantile } from './stats.ts';

export interface DatanetOptions {
  modelPath: string;
  rows: number;
  queries: number;
  catalogue: number;
  listings: number;
  uploadBytes: number;
  /** How long the large file is read at most, before it is taken back. */
  readSeconds: number;
  checks: number;
  seed: number;
}
export const DATANET_DEFAULTS = {
  rows: 100_000,
  queries: 200,
  catalogue: 10_000,
  listings: 200,
  uploadBytes: 500_000_000,
  readSeconds: 600,
  checks: 20_000,
  seed: 1,
} as const;
export const DATANET_QUICK = {
  rows: 1_000,
  queries: 12,
  catalogue: 200,
  listings: 20,
  uploadBytes: 5_000_000,
  checks: 200,
};

const MEMORY_POLL_MS = 200;
/** As long as 250,000 of them, the most that a contribution may have, make a little more than 500 MB. */
const LONG_ROW_BYTES = 2_200;
const MB = 1e6;

type Print = (line: string) => void;

export interface Published {
  datanet: string;
  version: number;
  rows: number;
  refused: number;
  bytes: number;
  seconds: { upload: number; read: number; review: number; publish: number };
  /** CPU of all processes of the product, seconds; NaN where it cannot be told. */
  cpuSeconds: number;
  words: WordCount;
}

async function publishing(server: OurServer, api: Api, options: DatanetOptions, folder: string): Promise<Published> {
  const words = new WordCount();
  const file = path.join(folder, 'rows.jsonl');
  const random = seededRandom(options.seed);
  function* lines() {
    for (const row of chats(options.rows, random)) {
      words.add(row);
      yield `${JSON.stringify(row)}\n`;
    }
  }
  await pipeline(Readable.from(lines()), createWriteStream(file));
  const { id } = await create(api, 'Measured', 'public');
  const cpuBefore = server.tree.cpuMs();
  const marks = [performance.now()];
  const lap = () => marks.push(performance.now());
  const sent = await send(api, id, file);
  lap();
  const contribution = await read(api, id, sent.id, 600);
  if (contribution.state !== 'ready')
    throw new Error(`the contribution is ${contribution.state}: ${contribution.error?.message}`);
  lap();
  const review = await api.call<{ changed: number }>('POST', `/api/datanets/${id}/review`, {
    action: 'approve',
    filter: { state: 'pending' },
  });
  lap();
  const version = await api.call<{ version: number; rows: number }>('POST', `/api/datanets/${id}/versions`, {});
  lap();
  if (review.changed !== contribution.rows || version.rows !== contribution.rows)
    throw new Error(`${contribution.rows} rows, ${review.changed} approved, ${version.rows} published`);
  const [upload, reading, reviewing, publish] = marks.slice(1).map((at, i) => (at - (marks[i] as number)) / 1000);
  return {
    datanet: id,
    version: version.version,
    rows: version.rows,
    refused: contribution.refused,
    bytes: statSync(file).size,
    seconds: {
      upload: upload as number,
      read: reading as number,
      review: reviewing as number,
      publish: publish as number,
    },
    cpuSeconds: (server.tree.cpuMs() - cpuBefore) / 1000,
    words,
  };
}

export type Samples = Record<string, number[]>;

async function searching(api: Api, published: Published, options: DatanetOptions, random: Random): Promise<Samples> {
  const { words, rows, datanet } = published;
  const classes = {
    'rare word (1 to 20 rows)': words.between(1, 20),
    'word of 0.2 to 2 % of the rows': words.between(rows * 0.002, rows * 0.02),
    'word of more than 30 % of the rows': words.between(rows * 0.3, rows),
  };
  const samples: Samples = {};
  const draw = (from: string[]) => from[random.integer(0, from.length)] ?? 'bridge';
  const [rare, medium, frequent] = Object.values(classes) as [string[], string[], string[]];
  const queries: [string, () => string][] = [
    ...Object.entries(classes).map(([name, from]) => [name, () => draw(from)] as [string, () => string]),
    ['two words, frequent and medium', () => `${draw(frequent)} ${draw(medium)}`],
    ['word that no row has', () => `${draw(rare)}xq`],
  ];
  for (let i = 0; i < options.queries; i++) {
    const [name, make] = queries[i % queries.length] as (typeof queries)[number];
    const at = `/api/datanets/${datanet}/search?q=${encodeURIComponent(make())}`;
    samples[name] ??= [];
    samples[name].push(await api.time(at));
  }
  return samples;
}

/** Straight into the database: who may have how many, and the audit log, are not what is measured here. */
async function fillCatalogue(server: OurServer, owner: string, count: number, random: Random): Promise<void> {
  const database = createClient({ url: `file:${path.join(server.dataFolder, 'gateway.db')}` });
  const kinds = ['chat', 'completion', 'preference'];
  const licences = ['CC-BY-4.0', 'CC0-1.0', 'Apache-2.0', 'MIT', 'CC-BY-SA-4.0'];
  const of = <T>(from: T[]) => from[random.integer(0, from.length)] as T;
  try {
    await database.execute('PRAGMA busy_timeout = 20000');
    for (let at = 0; at < count; at += 500) {
      const portion = Array.from({ length: Math.min(500, count - at) }, (_, i) => {
        const row = catalogued(at + i, random);
        const mine = random.next() < 0.01;
        const id = `dn_bench${at + i}`;
        return [
          {
            sql: `INSERT INTO datanets (id, owner_user, owner_organization, name, name_key, summary, description, tags, kind, licence, terms,
              visibility, state, languages, version, rows, created_by, created_at, updated_at)
              VALUES (?, ?, NULL, ?, ?, ?, ?, ?, ?, ?, '', ?, 'active', '["en"]', ?, ?, ?, ?, ?)`,
            args: [
              id,
              mine ? owner : `user_bench${random.integer(0, 400)}`,
              row.name,
              row.name.toLowerCase(),
              row.summary,
              row.description,
              JSON.stringify(row.tags),
              of(kinds),
              of(licences),
              of(['public', 'permissioned']),
              // One of ten was never published, so only its owner sees it.
              random.next() < 0.1 ? 0 : random.integer(1, 9),
              random.integer(0, 50_000),
              owner,
              Date.now(),
              Date.now(),
            ],
          },
          {
            sql: 'INSERT INTO datanets_text (rowid, name, summary, description, tags) SELECT seq, name, summary, description, ? FROM datanets WHERE id = ?',
            args: [row.tags.join(' '), id],
          },
        ];
      });
      await database.batch(portion.flat(), 'write');
    }
  } finally {
    database.close();
  }
}

async function listing(api: Api, published: Published, options: DatanetOptions, random: Random): Promise<Samples> {
  const { words, rows } = published;
  const medium = words.between(rows * 0.002, rows * 0.02);
  const of = <T>(from: T[]) => from[random.integer(0, from.length)] as T;
  const kinds: Record<string, () => string> = {
    'first page': () => 'limit=20',
    'a page in the middle': () => `limit=20&after=dn_bench${random.integer(0, options.catalogue)}`,
    'a page of 100': () => 'limit=100',
    'by kind and licence': () => `kind=${of(['chat', 'completion', 'preference'])}&licence=${of(['MIT', 'CC0-1.0'])}`,
    'by visibility': () => `visibility=${of(['public', 'permissioned'])}`,
    'by tag': () => `tag=${of(['law', 'music', 'farming'])}`,
    'by owner': () => `owner=user_bench${random.integer(0, 400)}`,
    'one’s own': () => 'mine=true',
    'words (q), medium': () => `q=${of(medium)}`,
    'words (q), frequent': () => `q=${of(['the', 'and', 'was', 'of'])}`,
    'words, tag and kind': () => `q=${of(medium)}&tag=law&kind=chat`,
  };
  const samples: Samples = {};
  for (let i = 0; i < options.listings; i++) {
    const [name, make] = Object.entries(kinds)[i % Object.keys(kinds).length] as [string, () => string];
    samples[name] ??= [];
    // A page after a Datanet that is not visible is refused, so such a name is drawn again.
    for (let tries = 0; ; tries++) {
      try {
        samples[name].push(await api.time(`/api/datanets?${make()}`));
        break;
      } catch (error) {
        if (tries > 20 || !/after/.test((error as Error).message)) throw error;
      }
    }
  }
  return samples;
}

export interface Memory {
  idle: number;
  /** Above idle, bytes. */
  uploading: number;
  reading: number;
  bytes: number;
  rows: number;
  whole: boolean;
  uploadSeconds: number;
  readSeconds: number;
}

/** A process and all that descend from it (Linux). */
function family(root: number): number[] {
  const found = [root];
  for (let i = 0; i < found.length; i++) {
    const threads = `/proc/${found[i]}/task`;
    for (const thread of readdirSync(threads))
      found.push(
        ...readFileSync(`${threads}/${thread}/children`, 'utf8').trim().split(' ').filter(Boolean).map(Number),
      );
  }
  return found;
}

/** Bytes in memory of the gateway and the processes it started; pages that several share count once (Linux; NaN elsewhere). */
function residentBytes(gateway: number): number {
  try {
    const kilobytes = family(gateway).map((pid) =>
      Number(/^Pss:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'))?.[1]),
    );
    return kilobytes.reduce((sum, one) => sum + one, 0) * 1024;
  } catch {
    // One of them ended while it was looked at, or this is not Linux.
    return Number.NaN;
  }
}

async function memory(server: OurServer, api: Api, options: DatanetOptions, folder: string): Promise<Memory> {
  const file = path.join(folder, 'large.jsonl');
  const random = seededRandom(options.seed + 1);
  await pipeline(Readable.from(longChats(options.uploadBytes, LONG_ROW_BYTES, random)), createWriteStream(file));
  const pid = readState(path.join(server.dataFolder, 'supervisor.json'))?.processes.gateway?.pid ?? 0;
  const { id } = await create(api, 'Large', 'permissioned');
  let most = 0;
  const timer = setInterval(() => {
    const now = residentBytes(pid);
    if (now > most) most = now;
  }, MEMORY_POLL_MS);
  const peak = () => {
    const found = most;
    most = 0;
    return found;
  };
  try {
    await sleep(2_000);
    const idle = residentBytes(pid);
    peak();
    const begin = performance.now();
    const sent = await send(api, id, file);
    const uploaded = performance.now();
    const uploading = peak() - idle;
    const contribution = await read(api, id, sent.id, options.readSeconds);
    const finished = performance.now();
    const reading = peak() - idle;
    const whole = contribution.state === 'ready';
    if (contribution.state === 'failed') throw new Error(`the large file failed: ${contribution.error?.message}`);
    await api.call('DELETE', `/api/datanets/${id}/contributions/${sent.id}`);
    const readSeconds = (finished - uploaded) / 1000;
    const uploadSeconds = (uploaded - begin) / 1000;
    const { size: bytes } = statSync(file);
    return { idle, uploading, reading, bytes, rows: contribution.rows, whole, uploadSeconds, readSeconds };
  } finally {
    clearInterval(timer);
    rmSync(file, { force: true });
  }
}

/** Of a row in the middle of the version: what is published can be proved. */
async function proving(api: Api, { datanet, version, rows }: Published): Promise<void> {
  const at = `/api/datanets/${datanet}/versions/${version}`;
  const middle = await api.call<{ data: Made[] }>('GET', `${at}/rows?limit=1&after=row_${Math.floor(rows / 2)}`);
  const proof = await api.call('GET', `${at}/rows/${middle.data[0]?.id}/proof`);
  const { ok } = verifyText(JSON.stringify(proof));
  if (!ok) throw new Error('the inclusion proof of a row does not verify');
}

export async function datanets(
  options: DatanetOptions,
  print: Print,
): Promise<{ report: Report; versions: Record<string, string> }> {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'bench-datanets-'));
  const server = await startOurs({ modelPath: options.modelPath });
  const random = seededRandom(options.seed + 2);
  try {
    const owner = await makeUser(server, 'owner@bench.test');
    const reader = await makeUser(server, 'reader@bench.test');
    // First, while the gateway has nothing in its caches.
    const measured = await memory(server, owner.api, options, folder);
    print(
      `memory: ${number(measured.idle / MB)} MB idle, +${number(measured.uploading / MB)} uploading in ${number(measured.uploadSeconds)} s, +${number(measured.reading / MB)} reading ${measured.rows} rows in ${number(measured.readSeconds)} s`,
    );
    const published = await publishing(server, owner.api, options, folder);
    const { upload, read: reading, review, publish } = published.seconds;
    print(
      `${published.rows} rows: upload ${number(upload)} s, read ${number(reading)} s, review ${number(review)} s, publish ${number(publish)} s`,
    );
    await proving(reader.api, published);
    const searches = await searching(reader.api, published, options, random);
    print(`search: p95 ${number(quantile(Object.values(searches).flat(), 0.95))} ms`);
    await fillCatalogue(server, owner.id, options.catalogue, random);
    const listings = await listing(owner.api, published, options, random);
    print(`lists: p95 ${number(quantile(Object.values(listings).flat(), 0.95))} ms`);
    const { datanet } = published;
    const costs = await authorizationCosts(server.dataFolder, { key: reader.api.key, datanet, checks: options.checks });
    const { words: _, ...facts } = published;
    const data = { options, published: facts, searches, listings, memory: measured, costs: quantilesOf(costs) };
    return {
      report: { ...datanetReport(published, searches, listings, measured, costs, options), data },
      versions: {},
    };
  } finally {
    await server.stop();
    rmSync(folder, { recursive: true, force: true });
  }
}

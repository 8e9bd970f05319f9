/** Datanets with rows in a real database file, made without the roads that lead there; and a client that fails when a test wants it. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Client } from '@libsql/client';
import { drizzle } from 'drizzle-orm/libsql';
import { canonicalJson, createKey, type LogKey } from '../../../../daemon/evidence.ts';
import type { TrainingExample } from '../../../../daemon/protocol.ts';
import { bandsOf, signatureOf } from '../../../../gateway/datanets/validation/minhash.ts';
import { contentHash, LEAF_TYPE, leafOf } from '../../../../gateway/datanets/versions/leaf.ts';
import { Versions } from '../../../../gateway/datanets/versions/versions.ts';
import type { DatanetRow } from '../../../../gateway/db/datanet-schema.ts';
import { contributions, datanetRows, datanets } from '../../../../gateway/db/datanet-schema.ts';
import { type Database, openDatabase } from '../../../../gateway/db/open.ts';
import * as schema from '../../../../gateway/db/schema.ts';
import type { Log } from '../../../../gateway/services.ts';

export const QUIET: Log = { info: () => {}, warn: () => {}, error: () => {} };

export interface RowOptions {
  state?: 'pending' | 'approved' | 'rejected';
  contributor?: string;
  reviewer?: string | null;
  generatedBy?: string | null;
  language?: string | null;
  score?: number;
  contribution?: string;
}

export interface Bench {
  db: Database;
  client: Client;
  key: LogKey;
  versions: Versions;
  now: { value: number };
  datanet(options?: Partial<DatanetRow>): Promise<DatanetRow>;
  /** As it is now. */
  read(id: string): Promise<DatanetRow>;
  /** @returns their numbers. */
  add(datanet: DatanetRow, examples: TrainingExample[], options?: RowOptions): Promise<number[]>;
  approve(rows: number[]): Promise<void>;
  /** Versions as a process that starts now would have them. */
  restarted(client?: Client, exclusive?: boolean): Versions;
  sql(text: string, args?: (string | number | null)[]): Promise<Record<string, unknown>[]>;
  close(): void;
}

export function completions(count: number, word = 'text', from = 0): TrainingExample[] {
  return Array.from({ length: count }, (_, index) => ({
    kind: 'completion',
    prompt: `${word} ${from + index}`,
    completion: `What ${word} number ${from + index} is about.`,
  }));
}

let made = 0;

export async function startBench(): Promise<Bench> {
  const folder = mkdtempSync(join(tmpdir(), 'mf-versions-'));
  const opened = await openDatabase({
    url: `file:${join(folder, 'gateway.db')}`,
    migrationsFolder: fileURLToPath(new URL('../../../../migrations/gateway', import.meta.url)),
  });
  const { db } = opened;
  const client = db.$client;
  const key = createKey(join(folder, 'keys', 'datanets.key'), 'datanets.example/test');
  const now = { value: 1_790_000_000_000 };
  const clock = () => {
    now.value += 1;
    return now.value;
  };
  const versionsOver = (database: Database, exclusive = true) =>
    new Versions({ db: database, key, log: QUIET, now: clock, exclusive });
  const bench: Bench = {
    db,
    client,
    key,
    now,
    versions: versionsOver(db),
    restarted: (other = client, exclusive = true) =>
      versionsOver(drizzle(other, { schema }) as unknown as Database, exclusive),
    async sql(text, args = []) {
      return (await client.execute({ sql: text, args })).rows as unknown as Record<string, unknown>[];
    },
    async datanet(options = {}) {
      made += 1;
      const at = clock();
      const [row] = await db
        .insert(datanets)
        .values({
          id: `dn_${made}`,
          ownerUser: 'user_owner',
          ownerOrganization: null,
          name: `Net ${made}`,
          nameKey: `net ${made}`,
          summary: 'A test.',
          description: '',
          tags: [],
          kind: 'completion',
          licence: 'CC-BY-4.0',
          terms: '',
          visibility: 'public',
          state: 'active',
          languages: [],
          createdBy: 'user_owner',
          createdAt: at,
          updatedAt: at,
          ...options,
        })
        .returning();
      return row as DatanetRow;
    },
    async read(id) {
      const [row] = await bench.sql('SELECT seq FROM datanets WHERE id = ?', [id]);
      if (row === undefined) throw new Error('no such Datanet');
      return (await db.query.datanets.findFirst({ where: (table, { eq }) => eq(table.id, id) })) as DatanetRow;
    },
    async add(datanet, examples, options = {}) {
      const contributor = options.contributor ?? 'user_giver';
      const contribution = options.contribution ?? `con_${datanet.id}_${contributor}`;
      const at = clock();
      await db
        .insert(contributions)
        .values({
          id: contribution,
          datanetId: datanet.id,
          contributor,
          keyId: 'key',
          filename: 'rows.jsonl',
          bytes: 1,
          sha256: '0'.repeat(64),
          options: {},
          licence: datanet.licence,
          state: 'ready',
          createdAt: at,
        })
        .onConflictDoNothing();
      const seqs: number[] = [];
      for (const example of examples) {
        const content = canonicalJson(example) as string;
        const hash = contentHash(content);
        const leaf = leafOf(
          {
            type: LEAF_TYPE,
            datanet: datanet.id,
            content: hash,
            contributor,
            contribution,
            licence: datanet.licence,
            time: new Date(at).toISOString(),
            generated_by: options.generatedBy ?? null,
          },
          key,
        );
        const [row] = await db
          .insert(datanetRows)
          .values({
            datanetId: datanet.id,
            contributionId: contribution,
            contributor,
            content,
            size: content.length,
            contentHash: hash,
            generatedBy: options.generatedBy ?? null,
            score: options.score ?? 90,
            reasons: [{ rule: 'short', points: 10, message: 'quotes the text' }],
            language: options.language ?? 'en',
            state: options.state ?? 'approved',
            reviewer: options.reviewer === undefined ? 'user_owner' : options.reviewer,
            entry: leaf.entry,
            leafHash: leaf.hash,
            createdAt: at,
          })
          .returning({ seq: datanetRows.seq });
        const { seq } = row as { seq: number };
        seqs.push(seq);
        const signature = signatureOf(content);
        await client.batch(
          [
            { sql: 'INSERT INTO datanet_signatures (row, signature) VALUES (?, ?)', args: [seq, signature] },
            ...bandsOf(signature, datanet.seq).map((band) => ({
              sql: 'INSERT INTO datanet_bands (band, row) VALUES (?, ?)',
              args: [band, seq],
            })),
            { sql: 'INSERT INTO datanet_rows_text (rowid, net, body) VALUES (?, ?, ?)', args: [seq, 'n', content] },
          ],
          'write',
        );
      }
      return seqs;
    },
    async approve(rows) {
      await bench.sql(
        "UPDATE datanet_rows SET state = 'approved' WHERE state = 'pending' AND seq IN (SELECT value FROM json_each(?))",
        [JSON.stringify(rows)],
      );
    },
    close() {
      opened.close();
      rmSync(folder, { recursive: true, force: true });
    },
  };
  return bench;
}

export class Failed extends Error {}

/**
 * The same database, but call number `at` (from 1) fails: `before` it reached the database, or `after` (the answer got lost). All calls behind
 * it fail too, as in a process that was killed.
 */
export function failing(
  client: Client,
  at: number,
  when: 'before' | 'after',
): { client: Client; calls: () => number; hit: () => boolean } {
  let calls = 0;
  let hit = false;
  const wrapped = new Proxy(client, {
    get(target, property) {
      const value: unknown = Reflect.get(target, property, target);
      if (typeof value !== 'function') return value;
      const call = value.bind(target) as (...args: unknown[]) => Promise<unknown>;
      if (property !== 'execute' && property !== 'batch') return call;
      return async (...args: unknown[]) => {
        calls += 1;
        if (calls > at) throw new Failed('the process is gone');
        if (calls < at) return call(...args);
        hit = true;
        if (when === 'after') await call(...args);
        throw new Failed('the process was killed');
      };
    },
  });
  return { client: wrapped, calls: () => calls, hit: () => hit };
}

/** Datanets with published rows, written as the parts that make them write them, for tests of what comes after. */
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { canonicalJson, createKey, type LogKey } from '../../../daemon/evidence.ts';
import type { TrainingExample } from '../../../daemon/protocol.ts';
import { LEAF_TYPE, leafOf } from '../../../gateway/datanets/versions/leaf.ts';
import { Versions } from '../../../gateway/datanets/versions/versions.ts';
import {
  contributions,
  type DatanetRow,
  datanetRows,
  datanets,
  type VersionRow,
} from '../../../gateway/db/datanet-schema.ts';
import type { Database } from '../../../gateway/db/open.ts';
import { randomId } from '../../../gateway/http/ids.ts';

export function logKey(): LogKey {
  const folder = mkdtempSync(join(tmpdir(), 'mf-key-'));
  try {
    return createKey(join(folder, 'datanets.key'), 'datanets.test');
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

export interface MadeDatanet {
  id: string;
  row(): Promise<DatanetRow>;
  /** Numbers (`seq`) of its rows, in order. */
  seqs: number[];
  /** Approved rows of a contributor, into a new version. */
  publish(examples: TrainingExample[], contributor?: string): Promise<VersionRow>;
  withdraw(seqs: number[], options?: { erase: boolean }): Promise<VersionRow | null>;
}

export function chatExample(text: string): TrainingExample {
  return {
    kind: 'chat',
    messages: [
      { role: 'user', content: `Question about ${text}` },
      { role: 'assistant', content: `Answer about ${text}` },
    ],
  };
}

export const chatExamples = (count: number, word = 'row') =>
  Array.from({ length: count }, (_, index) => chatExample(`${word} ${index}`));

export class DatanetFixture {
  readonly #db: Database;
  readonly #key: LogKey;
  readonly versions: Versions;

  /** @param key of the gateway, where it is to train on what is published */
  constructor(db: Database, now: () => number = Date.now, key: LogKey = logKey()) {
    this.#db = db;
    this.#key = key;
    const log = { info() {}, warn() {}, error() {} };
    this.versions = new Versions({ db, key: this.#key, log, now, exclusive: true });
  }

  async make(
    owner: { user: string } | { organization: string },
    options: Partial<Pick<DatanetRow, 'name' | 'visibility' | 'licence' | 'terms' | 'kind'>> = {},
  ): Promise<MadeDatanet> {
    const id = `dn_${randomId()}`;
    const db = this.#db;
    const name = options.name ?? `Datanet ${id.slice(3, 9)}`;
    const { licence = 'CC-BY-4.0', kind = 'chat' } = options;
    const ownerUser = 'user' in owner ? owner.user : null;
    const now = Date.now();
    await db.insert(datanets).values({
      id,
      ownerUser,
      ownerOrganization: 'organization' in owner ? owner.organization : null,
      name,
      nameKey: name.toLowerCase(),
      summary: '',
      description: '',
      tags: [],
      kind,
      licence,
      terms: options.terms ?? '',
      visibility: options.visibility ?? 'public',
      state: 'active',
      languages: [],
      createdBy: ownerUser ?? 'nobody',
      createdAt: now,
      updatedAt: now,
    });
    const row = async () => {
      const all = await db.select().from(datanets);
      return all.find((one) => one.id === id) as DatanetRow;
    };
    const seqs: number[] = [];
    return {
      id,
      row,
      seqs,
      publish: async (examples, contributor = ownerUser ?? 'user_somebody') => {
        const contributionId = `con_${randomId()}`;
        await db.insert(contributions).values({
          id: contributionId,
          datanetId: id,
          contributor,
          keyId: 'key_x',
          filename: 'rows.jsonl',
          bytes: 1,
          sha256: '0'.repeat(64),
          options: {},
          licence,
          state: 'ready',
          rows: examples.length,
          createdAt: now,
        });
        for (let at = 0; at < examples.length; at += 200) {
          const values = examples.slice(at, at + 200).map((example) => {
            const content = canonicalJson(example) as string;
            const contentHash = createHash('sha256').update(content).digest('hex');
            const leaf = leafOf(
              {
                type: LEAF_TYPE,
                datanet: id,
                content: contentHash,
                contributor,
                contribution: contributionId,
                licence,
                time: new Date(now).toISOString(),
                generated_by: null,
              },
              this.#key,
            );
            return {
              datanetId: id,
              contributionId,
              contributor,
              content,
              size: content.length,
              contentHash,
              score: 100,
              reasons: [],
              state: 'approved' as const,
              reviewer: 'user_reviewer',
              reviewedAt: now,
              entry: leaf.entry,
              leafHash: leaf.hash,
              createdAt: now,
            };
          });
          const inserted = await db.insert(datanetRows).values(values).returning({ seq: datanetRows.seq });
          seqs.push(...inserted.map(({ seq }) => seq));
        }
        return this.versions.publish(await row(), contributor, 'test');
      },
      withdraw: async (chosen, withdrawal = { erase: false }) =>
        this.versions.withdraw(await row(), chosen, 'user_reviewer', 'asked for', withdrawal),
    };
  }
}

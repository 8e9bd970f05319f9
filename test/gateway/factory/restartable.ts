/** Gateways over one database file, one folder of files and one scripted daemon, which come and go as processes would. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import OpenAI from 'openai';
import { createKey, type LogKey } from '../../../daemon/evidence.ts';
import { type App, createApp } from '../../../gateway/app.ts';
import { ROLE_SCOPES } from '../../../gateway/auth/scopes.ts';
import { type OpenedDatabase, openDatabase } from '../../../gateway/db/open.ts';
import { diskStorage } from '../../../gateway/factory/files/storage.ts';
import { DAEMON_TOKEN, type ScriptedDaemon, startScriptedDaemon } from '../../support/scripted-daemon.ts';
import { PRICE, TRAINING } from '../rig.ts';
import { type ScriptedTraining, scriptTraining } from './scripted-training.ts';

const migrationsFolder = fileURLToPath(new URL('../../../migrations/gateway', import.meta.url));

/** Of gateways that are not alone. */
const LEASE = { ms: 400, renewMs: 40 };

export interface Gateway {
  app: App;
  database: OpenedDatabase;
  openai: OpenAI;
  /** As a process that ends: loops stop where they are, nothing more is written. */
  stop(): Promise<void>;
}

export interface Restartable {
  folder: string;
  daemon: ScriptedDaemon;
  training: ScriptedTraining;
  /** That versions of Datanets are signed with. */
  key: LogKey;
  /** The user whose key the clients have; '' with the operator's. */
  owner: string;
  /** Goes on with what a gateway before it left; `exclusive`: alone on the database. */
  start(options?: { exclusive?: boolean }): Promise<Gateway>;
  /** Ends gateways that are left, and the daemon; the folder goes too. */
  close(): Promise<void>;
}

/** @param as whose key the clients have */
export async function makeRestartable(as: 'operator' | 'builder' = 'operator'): Promise<Restartable> {
  const folder = await mkdtemp(join(tmpdir(), 'mf-restart-'));
  const daemon = await startScriptedDaemon();
  const running = new Set<Gateway>();
  const key = createKey(join(folder, 'datanets.key'));
  let credential: string | undefined;
  const made: Restartable = {
    folder,
    daemon,
    training: scriptTraining(daemon),
    key,
    owner: '',
    start: async ({ exclusive = true } = {}) => {
      const database = await openDatabase({ url: `file:${join(folder, 'gateway.db')}`, migrationsFolder });
      const app = createApp({
        db: database.db,
        exclusiveDatabase: exclusive,
        daemons: { urls: [daemon.url], token: DAEMON_TOKEN, fetch: (url, init) => fetch(url, init) },
        price: PRICE,
        factory: { storage: diskStorage(join(folder, 'files')), ...TRAINING, lease: LEASE },
        datanets: { key, storage: diskStorage(join(folder, 'contributions')) },
        log: { info() {}, warn() {}, error() {} },
        metrics: 'key',
        version: '0',
      });
      credential ??= await credentialOf(app);
      await app.services.factory.start({ exclusive });
      const gateway: Gateway = {
        app,
        database,
        openai: new OpenAI({
          apiKey: credential,
          baseURL: 'http://gateway.test/v1',
          maxRetries: 0,
          fetch: async (url, init) => app.fetch(new Request(url as string, init as RequestInit)),
        }),
        stop: async () => {
          if (!running.delete(gateway)) return;
          await app.services.factory.stop();
          database.close();
        },
      };
      running.add(gateway);
      return gateway;
    },
    close: async () => {
      made.training.stop();
      await Promise.all([...running].map((gateway) => gateway.stop()));
      await daemon.stop().catch(() => {});
      await rm(folder, { recursive: true, force: true });
    },
  };
  return made;

  async function credentialOf(app: App): Promise<string> {
    if (as === 'operator') return (await app.services.keys.create({ name: 'admin', scopes: ['admin'] })).credential;
    const { users } = app.services.people;
    const user = await users.create({ email: 'owner@users.test', name: 'Owner', role: 'builder', state: 'active' });
    made.owner = user.id;
    const scopes = [...ROLE_SCOPES.builder];
    return (await app.services.keys.create({ name: 'personal', userId: user.id, scopes })).credential;
  }
}

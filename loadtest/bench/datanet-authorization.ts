/** What it costs to find out who asks and what they may do: the gateway's own functions on the database of the measured server. */
import { createHash } from 'node:crypto';
import path from 'node:path';
import { performance } from 'node:perf_hooks';
import { Hono } from 'hono';
import { loadKey } from '../../daemon/evidence.ts';
import { createApp } from '../../gateway/app.ts';
import { authenticate } from '../../gateway/auth/authenticate.ts';
import { openDatabase } from '../../gateway/db/open.ts';
import type { DatanetRow } from '../../gateway/db/schema.ts';
import { diskStorage } from '../../gateway/factory/files/storage.ts';
import { createLog } from '../../gateway/log.ts';
import type { AppEnv } from '../../gateway/services.ts';
import { projectFolder } from './report.ts';

/** Milliseconds each. */
export type AuthorizationCosts = Record<'key and scope' | 'Datanet (standing)' | 'key, scope and Datanet', number[]>;

export async function authorizationCosts(
  dataFolder: string,
  given: { key: string; datanet: string; checks: number },
): Promise<AuthorizationCosts> {
  const opened = await openDatabase({
    url: `file:${path.join(dataFolder, 'gateway.db')}`,
    migrationsFolder: path.join(projectFolder, 'migrations/gateway'),
  });
  const key = loadKey(path.join(dataFolder, 'keys', 'datanets.key'));
  if (key === null) throw new Error('the server has no key for Datanets');
  const { services } = createApp({
    db: opened.db,
    exclusiveDatabase: true,
    daemons: { urls: [], token: 'x'.repeat(32), fetch },
    price: { inputMicrosPerMillion: 0, outputMicrosPerMillion: 0, currency: 'USD' },
    factory: {
      storage: diskStorage(path.join(dataFolder, 'files')),
      trainingMicrosPerMillion: 0,
      organization: 'local',
    },
    datanets: { key, storage: diskStorage(path.join(dataFolder, 'contributions')) },
    log: createLog({ level: 'error', secrets: [] }),
    metrics: 'key',
    // As gateway/main.ts has it.
    sha256Hex: (text) => createHash('sha256').update(text).digest('hex'),
    version: 'bench',
  });
  const costs: AuthorizationCosts = { 'key and scope': [], 'Datanet (standing)': [], 'key, scope and Datanet': [] };
  try {
    const datanet = (await services.datanets.records.get(given.datanet)) as DatanetRow;
    // What these functions take is the context of a request, so they are called inside one.
    const probe = new Hono<AppEnv>().get('/', async (c) => {
      for (let i = 0; i < given.checks; i++) {
        const start = performance.now();
        const principal = await authenticate(services, c, 'datanets');
        const known = performance.now();
        await services.datanets.access.standing(principal, datanet);
        const done = performance.now();
        costs['key and scope'].push(known - start);
        costs['Datanet (standing)'].push(done - known);
        costs['key, scope and Datanet'].push(done - start);
      }
      return c.text('done');
    });
    const answer = await probe.request('/', { headers: { authorization: `Bearer ${given.key}` } });
    if (answer.status !== 200) throw new Error(`the check answered ${answer.status}: ${await answer.text()}`);
    return costs;
  } finally {
    opened.close();
  }
}

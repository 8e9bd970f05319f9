/** GET /health: this process, its database, each daemon, and what the supervisor says of them. No addresses, no secrets. */
import type { Context } from 'hono';
import type { AppEnv, Services } from '../services.ts';

export interface HealthSources {
  version: string;
  startedAt: number;
  database: () => Promise<unknown>;
  /** The supervisor's own account of its children, or null where there is none. */
  supervisor: () => Promise<unknown>;
}

export async function health(services: Services, sources: HealthSources, c: Context<AppEnv>): Promise<Response> {
  const [answers, database, supervisor] = await Promise.all([
    services.pool.health(),
    sources.database().then(
      () => 'ok',
      () => 'unavailable',
    ),
    sources.supervisor().catch(() => null),
  ]);
  // A daemon that the supervisor has seen die is not ready, whatever it said a moment ago.
  const down = downState(supervisor);
  const daemons = down === null ? answers : answers.map(() => null);
  const ready = daemons.some((daemon) => daemon?.status === 'ready' || daemon?.status === 'degraded');
  const status =
    ready && database === 'ok'
      ? daemons.every((daemon) => daemon?.status === 'ready')
        ? 'ready'
        : 'degraded'
      : 'unavailable';
  const body = {
    status,
    gateway: {
      version: sources.version,
      uptimeSeconds: Math.floor((services.now() - sources.startedAt) / 1000),
      database,
    },
    daemons: daemons.map((daemon) => daemon ?? { status: down ?? 'unreachable' }),
    supervisor: processesOf(supervisor),
  };
  return c.json(body, status === 'unavailable' ? 503 : 200);
}

/** The state of the daemon that the supervisor runs, if it can't serve in it. */
function downState(state: unknown): string | null {
  const daemon = (state as { processes?: { daemon?: { state?: unknown } } } | null)?.processes?.daemon?.state;
  return daemon === 'waiting_to_restart' || daemon === 'stopped' || daemon === 'failed' ? daemon : null;
}

/** State, restarts and since when, of each process; the rest (pids, commands, exit texts) is for the machine's owner. */
function processesOf(state: unknown): Record<string, unknown> | null {
  const processes = (state as { processes?: Record<string, Record<string, unknown>> } | null)?.processes;
  if (typeof processes !== 'object' || processes === null) return null;
  return Object.fromEntries(
    Object.entries(processes).map(([name, report]) => [
      name,
      { state: report.state, restarts: report.restarts, since: report.since },
    ]),
  );
}

/** `modelfactory models …` */
import { resolve } from 'node:path';
import { ensureBaseModel } from '../../daemon/models/fetch.ts';
import { progressPrinter } from '../../daemon/models/progress.ts';
import type { GatewayClient } from './client.ts';
import { type Output, table } from './output.ts';

const root = resolve(import.meta.dirname, '..', '..');

export async function listModels(client: GatewayClient, options: { json?: boolean }, { out }: Output): Promise<void> {
  const answer = (await client.call('GET', '/api/models')) as { data: Record<string, unknown>[] };
  if (options.json) {
    out(JSON.stringify(answer.data, null, 2));
    return;
  }
  const since = (seconds: unknown) =>
    typeof seconds === 'number' && seconds > 0 ? new Date(seconds * 1000).toISOString().slice(0, 10) : '-';
  const rows = answer.data.map(({ id, kind, bytes, tier, pinned, digest, created }) => [
    String(id),
    String(kind),
    typeof bytes === 'number' ? `${(bytes / 2 ** 20).toFixed(1)} MiB` : '-',
    String(tier ?? '-'),
    pinned === true ? 'yes' : pinned === false ? 'no' : '-',
    String(digest ?? '-').slice(0, 12),
    since(created),
  ]);
  out(table(['MODEL', 'KIND', 'SIZE', 'TIER', 'PINNED', 'DIGEST', 'SINCE'], rows, 'No model is loaded.'));
}

/** Fetches a model into the data folder; it is served after the next start with MODELFACTORY_BASE. */
export async function addModel(source: string, options: { json?: boolean }, { out, note }: Output): Promise<void> {
  const bar = progressPrinter(process.stderr);
  const onNotice = (line: string) => {
    bar.finish();
    note(line);
  };
  const dataDir = resolve(root, process.env.MODELFACTORY_DATA || 'data');
  const model = await ensureBaseModel(source, { dataDir, onProgress: bar.show, onNotice });
  bar.finish();
  out(
    options.json
      ? JSON.stringify(model, null, 2)
      : `${model.path}\nServe it with: MODELFACTORY_BASE=${source} npm start`,
  );
}

/** Adapters out over HTTP: /adapters/{name}/export and /adapters/{name}/card. */
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { RESPONSE_ALREADY_SENT } from '@hono/node-server/utils/response';
import { Hono } from 'hono';
import { DaemonError } from '../../errors.ts';
import { type DaemonEnv, type DaemonLog, parse } from '../../server.ts';
import { EXPORT_LIMITS } from '../limits.ts';
import { adapterCard } from './card.ts';
import { type ExportContext, exportQuery, openExport } from './export.ts';

export function exportRoutes(context: ExportContext, log: Pick<DaemonLog, 'info' | 'warn'>): Hono<DaemonEnv> {
  const app = new Hono<DaemonEnv>();
  let underWay = 0;

  app.get('/adapters/:name/card', async (c) => c.json(await adapterCard(c.req.param('name'), context)));
  app.get('/adapters/:name/export', async (c) => {
    const name = c.req.param('name');
    const query = parse(exportQuery, { format: c.req.query('format'), type: c.req.query('type') });
    if (underWay >= EXPORT_LIMITS.concurrentMax) {
      throw new DaemonError(
        'overloaded',
        `${underWay} exports are under way, which is the limit; try again when one is done`,
      );
    }
    underWay++;
    try {
      const { fileName, contentType, bytes, chunks, close } = await openExport(name, query, context);
      const { outgoing } = c.env;
      const startMs = performance.now();
      try {
        outgoing.writeHead(200, {
          'content-type': contentType,
          'content-length': bytes,
          'content-disposition': `attachment; filename="${fileName}"`,
          'cache-control': 'no-store',
        });
        // A reader who has stopped reading must not hold a thread and files for ever.
        outgoing.setTimeout(EXPORT_LIMITS.idleMs, () => outgoing.destroy());
        await pipeline(Readable.from(chunks, { objectMode: false, highWaterMark: EXPORT_LIMITS.readBytes }), outgoing);
        log.info({ adapter: name, ...query, bytes, totalMs: performance.now() - startMs }, 'exported');
      } catch (error) {
        // The head was sent: the length that does not come says that the rest is missing.
        outgoing.destroy();
        await close();
        log.warn({ adapter: name, ...query, cause: (error as Error).message }, 'an export ended early');
      } finally {
        await close();
      }
      return RESPONSE_ALREADY_SENT;
    } finally {
      underWay--;
    }
  });
  return app;
}

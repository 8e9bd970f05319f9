/** GET /api/datanets/{id}/versions/{version}/export: a version as a stream that is read from the database as fast as the client takes it. */
import { createHash } from 'node:crypto';
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import { LRUCache } from 'lru-cache';
import type { DatanetRow, VersionRow } from '../../db/datanet-schema.ts';
import { ApiError } from '../../errors.ts';
import { parseWith } from '../../http/validate.ts';
import { limits } from '../../limits.ts';
import type { AppEnv, Services } from '../../services.ts';
import type { Datanets } from '../datanets.ts';
import { datanetOf } from '../of.ts';
import { versionOf } from '../versions/api.ts';
import { croissantOf } from './croissant.ts';
import { csvHeader, csvLine } from './csv.ts';
import { attachment } from './filename.ts';
import { jsonLine } from './records.ts';

export const exportQuery = z
  .object({
    format: z.enum(['jsonl', 'csv', 'croissant']).default('jsonl'),
    /** Adds where each row is from: `_row`, `_contributor`, `_licence`, `_content_sha256`. */
    provenance: z.enum(['true', 'false']).default('false'),
  })
  .openapi('DatanetExportQuery');

const encoder = new TextEncoder();

interface ExportOptions {
  provenance: boolean;
  signal?: AbortSignal | undefined;
}

async function* jsonlOf(datanets: Datanets, version: VersionRow, options: ExportOptions): AsyncGenerator<Uint8Array> {
  for await (const rows of datanets.versions.contents(version.datanetId, version.number, options))
    yield encoder.encode(rows.map((row) => jsonLine(row, options)).join(''));
}

async function* csvOf(
  datanets: Datanets,
  datanet: DatanetRow,
  version: VersionRow,
  options: ExportOptions,
): AsyncGenerator<Uint8Array> {
  yield encoder.encode(csvHeader(datanet.kind, options));
  for await (const rows of datanets.versions.contents(version.datanetId, version.number, options))
    yield encoder.encode(rows.map((row) => csvLine(datanet.kind, row, options)).join(''));
}

/** Asked for a portion when the one before is gone, and not sooner; a client who leaves ends it. */
function streamOf(portions: AsyncGenerator<Uint8Array>): ReadableStream<Uint8Array> {
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        for (;;) {
          const { done, value } = await portions.next();
          if (done) return controller.close();
          // All rows of a portion may have been erased.
          if (value.byteLength > 0) return controller.enqueue(value);
        }
      },
      async cancel() {
        await portions.return(undefined);
      },
    },
    { highWaterMark: 0 },
  );
}

/** By Datanet, version and the Datanet's last change: rows of a version can lose their contents, and nothing else of it changes. */
const digests = new WeakMap<Datanets, LRUCache<string, Promise<{ sha256: string; bytes: number }>>>();

async function digestOf(services: Services, datanet: DatanetRow, version: VersionRow) {
  const { datanets, factory } = services;
  let known = digests.get(datanets);
  if (known === undefined) {
    known = new LRUCache({ max: limits.exportDigestsMax });
    digests.set(datanets, known);
  }
  const key = `${datanet.id}/${version.number}/${datanet.updatedAt}`;
  let digest = known.get(key);
  if (digest === undefined) {
    const patience = AbortSignal.timeout(limits.exportDigestWaitMs);
    const made = factory.turns.take(patience, async () => {
      const hash = createHash('sha256');
      let bytes = 0;
      for await (const portion of jsonlOf(datanets, version, { provenance: true })) {
        hash.update(portion);
        bytes += portion.byteLength;
      }
      return { sha256: hash.digest('hex'), bytes };
    });
    digest = made.catch((error: unknown) => {
      if (error !== patience.reason) throw error;
      const message = 'The gateway is reading too many large files at the moment; try again shortly.';
      const headers = { 'retry-after': String(limits.retryAfterSeconds) };
      throw new ApiError(503, 'server_error', 'overloaded', message, { headers });
    });
    known.set(key, digest);
    digest.catch(() => known.delete(key));
  }
  return digest;
}

function headersOf(datanet: DatanetRow, version: VersionRow, type: string, suffix: string): Record<string, string> {
  return {
    'content-type': type,
    'content-disposition': attachment(datanet.name, `-v${version.number}${suffix}`),
    'cache-control': 'no-store',
  };
}

export async function exportVersion(services: Services, c: Context<AppEnv>): Promise<Response> {
  const { datanets } = services;
  const { datanet } = await datanetOf(services, c, 'reads');
  const version = await versionOf(services, c, datanet);
  const query = parseWith(exportQuery, c.req.query());
  const options = { provenance: query.provenance === 'true', signal: c.req.raw.signal };
  switch (query.format) {
    case 'jsonl': {
      const headers = headersOf(datanet, version, 'application/jsonl', '.jsonl');
      return new Response(streamOf(jsonlOf(datanets, version, options)), { headers });
    }
    case 'csv': {
      const headers = headersOf(datanet, version, 'text/csv; charset=utf-8; header=present', '.csv');
      return new Response(streamOf(csvOf(datanets, datanet, version, options)), { headers });
    }
    case 'croissant': {
      const names = await datanets.records.ownerNames([datanet]);
      const id = datanet.ownerUser ?? datanet.ownerOrganization ?? '';
      const type = datanet.ownerUser === null ? 'organization' : 'user';
      const document = croissantOf({
        datanet,
        version,
        owner: { type, id, name: names.get(id) ?? '' },
        // Behind a proxy the request tells an address that nobody else reaches.
        base: services.people.publicUrl ?? new URL(c.req.url).origin,
        file: await digestOf(services, datanet, version),
      });
      const media = 'application/ld+json; profile="http://mlcommons.org/croissant/1.1"';
      const headers = headersOf(datanet, version, media, '.croissant.json');
      return new Response(JSON.stringify(document, null, 2), { headers });
    }
  }
}

/** A registry over a tiny base on disk, and what an export needs of it. */
import { mkdtempSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { extract } from 'tar-stream';
import type { ExportContext } from '../../../../daemon/adapters/export/export.ts';
import { AdapterRegistry } from '../../../../daemon/adapters/registry.ts';
import { inspectModel } from '../../../../daemon/models/inspect.ts';
import type { TinyModel } from '../../../support/tiny-models.ts';

export const BASE_DIGEST = 'ab'.repeat(32);

export async function contextFor(
  tiny: TinyModel,
  folder: string,
): Promise<ExportContext & { registry: AdapterRegistry }> {
  const { shape } = inspectModel(tiny.path);
  const registry = await AdapterRegistry.open({ root: mkdtempSync(join(folder, 'adapters-')), base: shape });
  const { size, mtimeMs } = statSync(tiny.path);
  const model = { path: tiny.path, id: 'tiny', digest: BASE_DIGEST, bytes: size, modifiedMs: mtimeMs };
  return { registry, model, base: shape };
}

export async function untar(tar: Buffer): Promise<Map<string, Buffer>> {
  const files = new Map<string, Buffer>();
  const reader = extract();
  Readable.from([tar]).pipe(reader);
  for await (const entry of reader) {
    const parts: Buffer[] = [];
    for await (const part of entry) parts.push(part as Buffer);
    files.set(entry.header.name, Buffer.concat(parts));
  }
  return files;
}

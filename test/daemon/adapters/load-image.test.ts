import { mkdtempSync, rmSync, statSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test, vi } from 'vitest';
import { type AdapterImage, type AdapterTensorPair, AddonError, type ModelInfo } from '../../../addon/types.ts';
import { loadAdapterImage } from '../../../daemon/adapters/load-image.ts';
import { AdapterRegistry } from '../../../daemon/adapters/registry.ts';
import { writePeftAdapter } from '../../support/safetensors-writer.ts';
import { describeTinyModel } from '../../support/tiny-models.ts';

const folder = mkdtempSync(join(tmpdir(), 'load-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const base = describeTinyModel('llama', '');
const info = base as unknown as ModelInfo;
const image: AdapterImage = { bytes: 1, rankMax: 4, release: () => {} };

test('the addon gets the file and the pairs; a file that became shorter never reaches it', async () => {
  writePeftAdapter(join(folder, 'peft'), base);
  const registry = await AdapterRegistry.open({ root: join(folder, 'adapters'), base });
  await registry.add({ name: 'a', source: join(folder, 'peft') });
  const adapter = await registry.handle('a');
  const loadAdapter = vi.fn(async (_path: string, _pairs: AdapterTensorPair[]) => image);

  expect(await loadAdapterImage({ info, loadAdapter }, adapter)).toBe(image);
  expect(loadAdapter.mock.calls).toEqual([[adapter.file, adapter.pairs]]);

  truncateSync(adapter.file, statSync(adapter.file).size - 1);
  await expect(loadAdapterImage({ info, loadAdapter }, adapter)).rejects.toMatchObject({ reason: 'corrupt' });
  expect(loadAdapter).toHaveBeenCalledTimes(1);

  rmSync(adapter.file);
  await expect(loadAdapterImage({ info, loadAdapter }, adapter)).rejects.toMatchObject({ code: 'ENOENT' });
});

test('what the addon refuses becomes a sentence for the caller', async () => {
  const registry = await AdapterRegistry.open({ root: join(folder, 'other'), base });
  await registry.add({ name: 'a', source: join(folder, 'peft') });
  const loadAdapter = async (): Promise<AdapterImage> => {
    throw new AddonError('adapter_invalid', 'rank 8 is more than the slots take');
  };
  await expect(loadAdapterImage({ info, loadAdapter }, await registry.handle('a'))).rejects.toMatchObject({
    code: 'adapter_invalid',
    message: expect.stringContaining('rank 8'),
  });
});

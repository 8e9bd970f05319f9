import { statSync } from 'node:fs';
import { type AdapterImage, AddonError, type Model } from '../../addon/types.ts';
import type { AdapterHandle } from '../engine/slots.ts';
import { AdapterError } from './errors.ts';
import { ADAPTER_LIMITS } from './limits.ts';
import { DTYPE_BYTES } from './parsed.ts';

/**
 * Has an adapter's file read and its image built, for `TierActions.loadImage`. The header was checked when the handle was
 * made; that every tensor still lies inside the file is checked again, because C++ reads where it is told.
 *
 * While streams run, the engine thread looks at what has completed only once a step, so each asynchronous call costs a
 * step: reading and building are one. Looking at the size takes microseconds.
 */
export async function loadAdapterImage(
  model: Pick<Model, 'info' | 'loadAdapter'>,
  adapter: AdapterHandle,
): Promise<AdapterImage> {
  const { size: fileBytes } = statSync(adapter.file);
  if (fileBytes > ADAPTER_LIMITS.fileBytesMax)
    throw new AdapterError('too_large', `the adapter file has ${fileBytes} bytes`);
  for (const pair of adapter.pairs) {
    const size = model.info.targets[pair.target];
    const isWhole =
      pair.layer < model.info.layers &&
      pair.a.offset + pair.rank * size.in * DTYPE_BYTES[pair.a.dtype] <= fileBytes &&
      pair.b.offset + pair.rank * size.out * DTYPE_BYTES[pair.b.dtype] <= fileBytes;
    if (!isWhole)
      throw new AdapterError(
        'corrupt',
        'the adapter file on disk was changed or damaged; remove the adapter and add it again',
      );
  }
  try {
    return await model.loadAdapter(adapter.file, adapter.pairs);
  } catch (error) {
    if (error instanceof AddonError)
      throw new AdapterError('unsupported', `the adapter cannot be loaded: ${error.message}`);
    throw error;
  }
}

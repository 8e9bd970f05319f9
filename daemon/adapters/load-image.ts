import { closeSync, fstatSync, openSync, read } from 'node:fs';
import { type AdapterImage, AddonError, type Model } from '../../addon/types.ts';
import type { AdapterHandle } from '../engine/slots.ts';
import { AdapterError } from './errors.ts';
import { ADAPTER_LIMITS } from './limits.ts';
import { DTYPE_BYTES } from './parsed.ts';

/**
 * Reads an adapter's file and has its image built, for `TierActions.loadImage`. The header was checked when the handle was
 * made; that every tensor still lies inside the file is checked again, because C++ reads where it is told.
 */
export async function loadAdapterImage(
  model: Pick<Model, 'info' | 'buildAdapter'>,
  adapter: AdapterHandle,
): Promise<AdapterImage> {
  const bytes = await readWhole(adapter.file);
  for (const pair of adapter.pairs) {
    const size = model.info.targets[pair.target];
    const ends = [
      pair.a.offset + pair.rank * size.in * DTYPE_BYTES[pair.a.dtype],
      pair.b.offset + pair.rank * size.out * DTYPE_BYTES[pair.b.dtype],
    ];
    const whole = pair.layer < model.info.layers && ends.every((end) => end <= bytes.byteLength);
    if (!whole)
      throw new AdapterError(
        'corrupt',
        'the adapter file on disk was changed or damaged; remove the adapter and add it again',
      );
  }
  try {
    return await model.buildAdapter(bytes, adapter.pairs);
  } catch (error) {
    if (error instanceof AddonError)
      throw new AdapterError('unsupported', `the adapter cannot be loaded: ${error.message}`);
    throw error;
  }
}

/**
 * The whole file in one buffer. While streams run, the engine thread looks at what has completed only once a step, so each
 * asynchronous call costs a step: only the reading is one; opening takes microseconds.
 */
async function readWhole(path: string): Promise<Uint8Array> {
  const fd = openSync(path, 'r');
  try {
    const { size } = fstatSync(fd);
    if (size > ADAPTER_LIMITS.fileBytesMax) throw new AdapterError('too_large', `the adapter file has ${size} bytes`);
    const bytes = Buffer.allocUnsafeSlow(size);
    for (let at = 0; at < size; ) {
      const bytesRead = await readInto(fd, bytes, at);
      if (bytesRead === 0) return bytes.subarray(0, at);
      at += bytesRead;
    }
    return bytes;
  } finally {
    closeSync(fd);
  }
}

function readInto(fd: number, bytes: Buffer, at: number): Promise<number> {
  return new Promise((resolve, reject) => {
    read(fd, bytes, at, bytes.byteLength - at, at, (error, bytesRead) => {
      if (error) reject(error);
      else resolve(bytesRead);
    });
  });
}

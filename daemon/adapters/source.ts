/** Where an adapter comes from: a folder or file on this machine, or the hub. Each becomes the files of an import. */
import { constants, createReadStream } from 'node:fs';
import { type FileHandle, open, readdir, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { AdapterError } from './errors.ts';
import { CONFIG_FILE, type IncomingFile, PEFT_WEIGHTS_FILE } from './store.ts';

/** @throws AdapterError `source_invalid` */
export async function* localFiles(path: string): AsyncGenerator<IncomingFile> {
  for (const file of await filesAt(path)) {
    const handle = await openRegular(file);
    try {
      const { size } = await handle.stat();
      yield { name: basename(file), bytes: size, content: readAll(handle) };
    } finally {
      await handle.close();
    }
  }
}

async function filesAt(path: string): Promise<string[]> {
  const info = await stat(path).catch(() => null);
  if (!info) {
    throw new AdapterError(
      'source_invalid',
      `${path} does not exist or may not be read; give a folder, a .gguf file, or hf:owner/repo`,
    );
  }
  if (info.isDirectory()) {
    const names = await readdir(path);
    const wanted = names.filter((name) => name === CONFIG_FILE || name === PEFT_WEIGHTS_FILE || name.endsWith('.gguf'));
    // The store's sentence about pickles helps more than "missing".
    if (!names.includes(PEFT_WEIGHTS_FILE)) wanted.push(...names.filter((name) => name === 'adapter_model.bin'));
    return wanted.map((name) => join(path, name));
  }
  if (path.endsWith('.safetensors')) return [join(dirname(path), CONFIG_FILE), path];
  return [path];
}

/** O_NONBLOCK: opening a pipe must not wait for its other end. */
async function openRegular(path: string): Promise<FileHandle> {
  let handle: FileHandle;
  try {
    handle = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? 'error';
    throw new AdapterError('source_invalid', `${path} cannot be read (${code})`);
  }
  if ((await handle.stat()).isFile()) return handle;
  await handle.close();
  throw new AdapterError('source_invalid', `${path} is no regular file`);
}

function readAll(handle: FileHandle): AsyncIterable<Uint8Array> {
  return createReadStream('', { fd: handle, autoClose: false, start: 0, highWaterMark: 1024 * 1024 });
}

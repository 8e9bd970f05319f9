/** The files of a local adapter as a multipart/form-data body (RFC 7578), streamed, with its length known beforehand. */
import { randomBytes } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { CliError, type Upload } from './client.ts';

export interface LocalFile {
  path: string;
  name: string;
  bytes: number;
}

/** What of a path is the adapter: one .gguf file, or config and weights of a PEFT folder (not its README, tokenizer or optimizer). */
export async function adapterFiles(path: string): Promise<LocalFile[]> {
  const found = await stat(path).catch(() => null);
  if (found === null)
    throw new CliError(`There is no ${path}. An adapter is a PEFT folder, a .gguf file, or hf:owner/repo.`);
  if (found.isFile()) {
    if (!/\.gguf$/i.test(path))
      throw new CliError(
        `${path} is not a .gguf file. Give the whole folder of a PEFT adapter (adapter_config.json and adapter_model.safetensors).`,
      );
    return [{ path, name: basename(path), bytes: found.size }];
  }
  const names = await readdir(path);
  const wanted = names.filter(
    (name) => name === 'adapter_config.json' || /^adapter_model[\w.-]*\.safetensors$/.test(name),
  );
  if (!wanted.includes('adapter_config.json'))
    throw new CliError(`${path} has no adapter_config.json, so it is no PEFT adapter.`);
  if (wanted.length === 1) {
    const isPickle = names.includes('adapter_model.bin');
    const why = isPickle
      ? 'only adapter_model.bin, a pickle, which is never loaded; save it again with PEFT (safe_serialization=True)'
      : 'no adapter_model.safetensors';
    throw new CliError(`${path} has ${why}.`);
  }
  return await Promise.all(
    wanted.map(async (name) => ({ path: join(path, name), name, bytes: (await stat(join(path, name))).size })),
  );
}

/** `onProgress` is told after every piece that was handed to the connection. `field`: the name under which the files go. */
export function multipart(
  fields: Record<string, string>,
  files: LocalFile[],
  onProgress: (doneBytes: number, totalBytes: number) => void,
  field = 'files',
): Upload {
  const boundary = `modelfactory-${randomBytes(18).toString('hex')}`;
  const heads = Object.entries(fields).map(([name, value]) =>
    Buffer.from(`--${boundary}\r\ncontent-disposition: form-data; name="${quote(name)}"\r\n\r\n${value}\r\n`),
  );
  const fileHeads = files.map((file) =>
    Buffer.from(
      `--${boundary}\r\ncontent-disposition: form-data; name="${field}"; filename="${quote(file.name)}"\r\ncontent-type: application/octet-stream\r\n\r\n`,
    ),
  );
  const lineEnd = Buffer.from('\r\n');
  const tail = Buffer.from(`--${boundary}--\r\n`);
  const sum = (parts: Buffer[]) => parts.reduce((total, part) => total + part.length, 0);
  const contentLength =
    sum(heads) + sum(fileHeads) + files.reduce((total, { bytes }) => total + bytes + lineEnd.length, 0) + tail.length;

  async function* body(): AsyncGenerator<Uint8Array> {
    let done = 0;
    const count = (part: Uint8Array) => {
      done += part.length;
      onProgress(done, contentLength);
      return part;
    };
    for (const head of heads) yield count(head);
    for (const [i, file] of files.entries()) {
      yield count(fileHeads[i] as Buffer);
      // A file that grows meanwhile must not exceed the length that was promised.
      const stream =
        file.bytes === 0 ? [] : createReadStream(file.path, { end: file.bytes - 1, highWaterMark: 256 * 1024 });
      for await (const chunk of stream) yield count(chunk as Buffer);
      yield count(lineEnd);
    }
    yield count(tail);
  }
  return { contentType: `multipart/form-data; boundary=${boundary}`, contentLength, body: body() };
}

/** As HTML says it for names in multipart bodies. */
function quote(text: string): string {
  return text.replaceAll('"', '%22').replaceAll('\r', '%0D').replaceAll('\n', '%0A');
}

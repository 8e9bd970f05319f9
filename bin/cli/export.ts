/** `modelfactory export NAME`: an adapter as files on this machine. */

import { randomUUID } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { mkdir, open, rename, rm, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { type Command, Option } from 'commander';
import { extract, type Header } from 'tar-stream';
import { progressPrinter } from '../../daemon/models/progress.ts';
import { CliError, type GatewayClient } from './client.ts';
import { type Context, subcommand } from './command.ts';
import { type Output, size } from './output.ts';

export interface ExportOptions {
  format: 'peft' | 'gguf' | 'merged';
  type?: string;
  out: string;
  force?: boolean;
  json?: boolean;
}

/** Files of a PEFT folder; a server that sends others is not obeyed. */
const PEFT_NAME = /^[A-Za-z0-9_][\w.@-]{0,127}$/;
const PEFT_FILES_MAX = 64;

const NEXT: Record<ExportOptions['format'], (path: string) => string> = {
  peft: (path) => `Load it with: PeftModel.from_pretrained(model, "${path}")`,
  gguf: (path) => `Use it with: llama-server -m BASE.gguf --lora ${path}`,
  merged: (path) => `Serve it with: MODELFACTORY_BASE=${path} npm start`,
};

/** What is there at the end is whole; what was begun is gone if it fails. */
export async function exportAdapter(
  client: GatewayClient,
  name: string,
  options: ExportOptions,
  { out }: Output,
): Promise<void> {
  const { format, type, force = false } = options;
  const folder = resolve(options.out);
  const safe = name.replace(/[^A-Za-z0-9._@-]/g, '_').replace(/^\.+/, '_');
  const target = join(folder, { peft: safe, gguf: `${safe}-lora.gguf`, merged: `${safe}-merged.gguf` }[format]);
  // Asked before anything is computed.
  if (!force && (await exists(target)))
    throw new CliError(`${target} is there already; remove it, choose another --out, or replace it with --force.`);
  const query = new URLSearchParams({ format, ...(type && { type }) });
  const bar = progressPrinter(process.stderr);
  const temporary = join(folder, `.${randomUUID()}.part`);
  const started = performance.now();
  let doneBytes = 0;
  try {
    const answer = await client.download(`/api/adapters/${encodeURIComponent(name)}/export?${query}`);
    const count = async function* (source: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
      for await (const chunk of source) {
        doneBytes += chunk.byteLength;
        bar.show({ label: name, doneBytes, totalBytes: answer.bytes });
        yield chunk;
      }
    };
    await mkdir(folder, { recursive: true });
    if (format === 'peft') await unpack(count(answer.body), temporary);
    else {
      await pipeline(Readable.from(count(answer.body)), createWriteStream(temporary, { flags: 'wx' }));
      await synced(temporary);
    }
    if (answer.bytes !== null && doneBytes !== answer.bytes)
      throw new CliError(`The export ended after ${doneBytes} of ${answer.bytes} bytes; the server's log says why.`);
    if (force) await rm(target, { recursive: true, force: true });
    await rename(temporary, target);
  } catch (error) {
    throw readable(error, folder);
  } finally {
    bar.finish();
    // Where nothing could be made, nothing is to be removed.
    await rm(temporary, { recursive: true, force: true }).catch(() => {});
  }
  const seconds = (performance.now() - started) / 1000;
  out(
    options.json
      ? JSON.stringify({ name, format, path: target, bytes: doneBytes, seconds }, null, 2)
      : `${target} (${size(doneBytes)}, ${seconds.toFixed(1)} s)\n${NEXT[format](target)}`,
  );
}

/** The tar's one folder becomes `directory`; nothing can land anywhere else. */
async function unpack(body: AsyncIterable<Uint8Array>, directory: string): Promise<void> {
  await mkdir(directory);
  const reader = extract();
  const feeding = pipeline(Readable.from(body), reader);
  feeding.catch(() => {});
  let files = 0;
  for await (const entry of reader) {
    const file = fileOf(entry.header);
    if (file === null || ++files > PEFT_FILES_MAX)
      throw new CliError(
        `The export holds ${JSON.stringify(entry.header.name.slice(0, 100))}, which is not part of a PEFT folder.`,
      );
    const path = join(directory, file);
    await pipeline(entry, createWriteStream(path, { flags: 'wx' }));
    await synced(path);
  }
  await feeding;
}

function fileOf({ name, type }: Header): string | null {
  const [folder = '', file = '', ...rest] = name.split('/');
  return type === 'file' && rest.length === 0 && [folder, file].every((part) => PEFT_NAME.test(part)) ? file : null;
}

async function synced(path: string): Promise<void> {
  const file = await open(path, 'r+');
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

async function exists(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    () => false,
  );
}

function readable(error: unknown, folder: string): unknown {
  if (error instanceof CliError) return error;
  const { code, message } = error as NodeJS.ErrnoException;
  if (code === 'ENOSPC' || code === 'EDQUOT')
    return new CliError(`The disk of ${folder} is full; nothing was kept. Free some space and try again.`);
  if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS')
    return new CliError(`${folder} cannot be written to (${code}).`);
  if (code === 'ENOTDIR' || code === 'EEXIST') return new CliError(`${folder} is no folder (${code}).`);
  return new CliError(
    `The export broke off (${code ?? message}); nothing was kept. Try again; the server's log says why.`,
  );
}

export function exportCommands(program: Command, { client, output }: Context): void {
  subcommand(program, 'export <name>', 'take an adapter out: as a PEFT folder, a GGUF LoRA, or merged into its base')
    .addOption(
      new Option('--format <format>', 'what to make').choices(['peft', 'gguf', 'merged']).makeOptionMandatory(),
    )
    .option(
      '--type <type>',
      'of the weights: merged f16, q8_0, q4_0, … (default: as the base, at least 8 bits where changed); gguf f32, f16, bf16',
    )
    .option('--out <folder>', 'where to', '.')
    .option('--force', 'replace what is there')
    .action((name: string, options: ExportOptions) => exportAdapter(client(), name, options, output));
}

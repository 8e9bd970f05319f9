/** `modelfactory models …` */

import { existsSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { basename, join, resolve } from 'node:path';
import type { Command } from 'commander';
import type { QuantizedType } from '../../addon/quantize.ts';
import { BUILTIN_MODELS } from '../../daemon/models/builtin.ts';
import { type BaseModelFile, ensureBaseModel, FetchError, type FetchOptions } from '../../daemon/models/fetch.ts';
import { ModelFileError } from '../../daemon/models/gguf-errors.ts';
import { progressPrinter } from '../../daemon/models/progress.ts';
import { quantizeModel } from '../../daemon/models/quantize.ts';
import { isModelType, MODEL_TYPES } from '../../daemon/models/tensor-choice.ts';
import { CliError, type GatewayClient } from './client.ts';
import { type Context, subcommand } from './command.ts';
import { day, type Output, size, table } from './output.ts';

const root = resolve(import.meta.dirname, '..', '..');

export async function listModels(client: GatewayClient, options: { json?: boolean }, { out }: Output): Promise<void> {
  const answer = (await client.call('GET', '/api/models')) as { data: Record<string, unknown>[] };
  if (options.json) {
    out(JSON.stringify(answer.data, null, 2));
    return;
  }
  const since = (seconds: unknown) => day(typeof seconds === 'number' && seconds > 0 ? seconds : null);
  const rows = answer.data.map(({ id, kind, bytes, tier, pinned, digest, created }) => [
    String(id),
    String(kind),
    typeof bytes === 'number' ? size(bytes) : '-',
    String(tier ?? '-'),
    pinned === true ? 'yes' : pinned === false ? 'no' : '-',
    String(digest ?? '-').slice(0, 12),
    since(created),
  ]);
  out(table(['MODEL', 'KIND', 'SIZE', 'TIER', 'PINNED', 'DIGEST', 'SINCE'], rows, 'No model is loaded.'));
}

export interface AddModelOptions {
  /** Convert to this type after fetching. */
  type?: string;
  requantize?: boolean;
  json?: boolean;
}

/** Fetches a model into the data folder; it is served after the next start with MODELFACTORY_BASE. */
export async function addModel(source: string, options: AddModelOptions, output: Output): Promise<void> {
  const { out, note } = output;
  if (options.type !== undefined) checkedType(options.type);
  const bar = progressPrinter(process.stderr);
  const onNotice = (line: string) => {
    bar.finish();
    note(line);
  };
  const dataDir = resolve(root, process.env.MODELFACTORY_DATA || 'data');
  const model = await fetched(source, { dataDir, onProgress: bar.show, onNotice });
  bar.finish();
  if (options.type !== undefined) {
    await quantizeBase(model.path, { ...options, type: options.type, source }, output);
    return;
  }
  out(
    options.json
      ? JSON.stringify(model, null, 2)
      : `${model.path}\nServe it with: MODELFACTORY_BASE=${model.origin === 'file' ? model.path : source} npm start`,
  );
}

export interface QuantizeBaseOptions {
  type: string;
  /** File of the converted model; default: beside the others in the data folder. */
  out?: string;
  requantize?: boolean;
  json?: boolean;
}

/** Fetches a model where that is needed, and converts it to a smaller type. */
export async function quantizeBase(
  source: string,
  options: QuantizeBaseOptions & { source?: string },
  { out, note }: Output,
): Promise<void> {
  const type = checkedType(options.type);
  const bar = progressPrinter(process.stderr);
  const onNotice = (line: string) => {
    bar.finish();
    note(line);
  };
  const dataDir = resolve(root, process.env.MODELFACTORY_DATA || 'data');
  const model = await fetched(source, { dataDir, onProgress: bar.show, onNotice });
  const name = basename(model.path)
    .replace(/\.gguf$/i, '')
    .replace(/[.-](f16|bf16|f32|q\d\w*|iq\d\w*)$/i, '');
  const target = resolve(options.out ?? join(dataDir, 'models', `${name}.${type.toUpperCase()}.gguf`));
  if (existsSync(target)) throw new CliError(`${target} is there already; remove it or choose another --out.`);
  const abort = new AbortController();
  const stop = () => abort.abort(new CliError('Stopped; nothing was kept.'));
  process.once('SIGINT', stop);
  process.once('SIGTERM', stop);
  try {
    const made = await quantizeModel({
      source: model.path,
      target,
      type,
      requantize: options.requantize ?? false,
      threads: availableParallelism(),
      onProgress: (progress) => bar.show({ ...progress, label: `${name} → ${type}` }),
      signal: abort.signal,
    });
    bar.finish();
    const types = Object.entries(made.types).sort((a, b) => b[1] - a[1]);
    const weights = types.map(([one, count]) => `${(count / 1e6).toFixed(1)} M in ${one}`).join(', ');
    out(
      options.json
        ? JSON.stringify(made, null, 2)
        : `${made.path}\n${size(made.sourceBytes)} became ${size(made.bytes)} in ${made.seconds.toFixed(1)} s: ${weights}.\nServe it with: MODELFACTORY_BASE=${made.path} npm start`,
    );
  } catch (error) {
    if (error instanceof ModelFileError || (error as Error).name === 'AddonError')
      throw new CliError((error as Error).message);
    throw error;
  } finally {
    bar.finish();
    process.removeListener('SIGINT', stop);
    process.removeListener('SIGTERM', stop);
  }
}

/** Where the source is nothing at all, that is what is wrong here, not a setting of the server. */
async function fetched(source: string, options: FetchOptions): Promise<BaseModelFile> {
  try {
    return await ensureBaseModel(source, options);
  } catch (error) {
    if (!(error instanceof FetchError) || error.code !== 'name_unknown') throw error;
    throw new CliError(
      `There is no file ${source}, and no built-in model of that name. Give a path to a .gguf file, hf:owner/repo/file.gguf, or one of: ${BUILTIN_MODELS.map(({ id }) => id).join(', ')}.`,
    );
  }
}

function checkedType(text: string): QuantizedType {
  const type = text.toLowerCase();
  if (isModelType(type)) return type;
  throw new CliError(`There is no type ${text}. Types: ${MODEL_TYPES.join(', ')}; for QLoRA take iq4_nl.`);
}

export function modelCommands(program: Command, { client, output }: Context): void {
  const models = program.command('models').description('base models');
  subcommand(models, 'list', 'what the running server serves').action((options) =>
    listModels(client(), options, output),
  );
  subcommand(models, 'add', 'fetch a base model into the data folder')
    .argument('<source>', 'hf:owner/repo/file.gguf, a built-in name, or a path')
    .option('--type <type>', 'convert it to this type, e.g. q8_0, q4_0, or iq4_nl for QLoRA')
    .option('--requantize', 'also if it is quantised already')
    .action((source: string, options: AddModelOptions) => addModel(source, options, output));
  subcommand(models, 'quantize', 'convert an f16, bf16 or f32 base model to fewer bits')
    .argument('<source>', 'a path, hf:owner/repo/file.gguf, or a built-in name')
    .requiredOption('--type <type>', 'q8_0, q4_0, q4_1, iq4_nl (the choice for QLoRA), q4_k, …')
    .option('--out <file>', 'where to; default: into the data folder')
    .option('--requantize', 'also if it is quantised already, which loses precision twice')
    .action((source: string, options: QuantizeBaseOptions) => quantizeBase(source, options, output));
}

/** The commands and their options. Every command ends with exit code 0, or with one sentence and exit code 1. */
import { readFileSync } from 'node:fs';
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { FetchError } from '../../daemon/models/fetch.ts';
import { addAdapter, listAdapters, removeAdapter } from './adapters.ts';
import { CliError, GatewayClient } from './client.ts';
import { evaluate, listAliases, promote, rollback } from './evaluate.ts';
import { type ExportOptions, exportAdapter } from './export.ts';
import { listFiles, removeFile } from './files.ts';
import { actOnJob, listJobs, showJob, watchJob } from './jobs.ts';
import { createKey, type KeyOptions, listKeys, revokeKey } from './keys.ts';
import { type AddModelOptions, addModel, listModels, type QuantizeBaseOptions, quantizeBase } from './models.ts';
import { type Output, terminal } from './output.ts';
import { saveReceipt, type VerifyOptions, verify } from './receipts.ts';
import { type TrainOptions, train } from './train.ts';

/** `args`: without node and script. Returns the exit code. */
export async function runCli(
  args: string[],
  output: Output = terminal,
  env: NodeJS.ProcessEnv = process.env,
): Promise<number> {
  let code = 0;
  const program = createProgram(output, env, (result) => {
    code = result;
  });
  try {
    await program.parseAsync(args, { from: 'user' });
    return code;
  } catch (error) {
    // Help and version are no errors; what else commander refuses, it has said already.
    if (error instanceof CommanderError) return error.exitCode;
    if (!(error instanceof CliError) && !(error instanceof FetchError)) throw error;
    output.note(`error: ${error.message}`);
    return 1;
  }
}

function createProgram(output: Output, env: NodeJS.ProcessEnv, setCode: (code: number) => void): Command {
  const program = new Command('modelfactory');
  const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
    version: string;
  };
  program
    .description('Serves many LoRA adapters over one base model, with a verifiable receipt for every answer.')
    .version(version)
    .showHelpAfterError('(--help shows what there is)')
    .configureOutput({
      writeOut: (text) => output.out(text.trimEnd()),
      writeErr: (text) => output.note(text.trimEnd()),
    })
    .exitOverride();
  const client = () => new GatewayClient(env);

  // Both are handled before this program is loaded; they are here for --help.
  program
    .command('start')
    .description('install and build what is missing, then run gateway and daemon (the same as npm start)');
  program
    .command('doctor')
    .description('what this machine has and lacks, and how to get it')
    .option('--json', 'as JSON');

  const models = program.command('models').description('base models');
  models
    .command('list')
    .description('what the running server serves')
    .option('--json', 'as JSON')
    .action((options) => listModels(client(), options, output));
  models
    .command('add')
    .description('fetch a base model into the data folder')
    .argument('<source>', 'hf:owner/repo/file.gguf, a built-in name, or a path')
    .option('--type <type>', 'convert it to this type, e.g. q8_0, q4_0, or iq4_nl for QLoRA')
    .option('--requantize', 'also if it is quantised already')
    .option('--json', 'as JSON')
    .action((source: string, options: AddModelOptions) => addModel(source, options, output));
  models
    .command('quantize')
    .description('convert an f16, bf16 or f32 base model to fewer bits')
    .argument('<source>', 'a path, hf:owner/repo/file.gguf, or a built-in name')
    .requiredOption('--type <type>', 'q8_0, q4_0, q4_1, iq4_nl (the choice for QLoRA), q4_k, …')
    .option('--out <file>', 'where to; default: into the data folder')
    .option('--requantize', 'also if it is quantised already, which loses precision twice')
    .option('--json', 'as JSON')
    .action((source: string, options: QuantizeBaseOptions) => quantizeBase(source, options, output));

  const adapters = program.command('adapters').description('LoRA adapters of the running server');
  adapters
    .command('add')
    .description('upload a PEFT folder or a .gguf file, or let the server fetch one from the hub')
    .argument('<source>', 'a path, or hf:owner/repo')
    .requiredOption('--name <name>', 'what clients put into "model"')
    .option('--replace', 'replace an adapter of the same name; requests under way finish on the old weights')
    .option('--json', 'as JSON')
    .action((source, options) => addAdapter(client(), source, options, output));
  adapters
    .command('list')
    .description('name, rank, size and where each adapter is now')
    .option('--json', 'as JSON')
    .action((options) => listAdapters(client(), options, output));
  adapters
    .command('remove')
    .description('remove an adapter')
    .argument('<name>')
    .option('--json', 'as JSON')
    .action((name, options) => removeAdapter(client(), name, options, output));

  program
    .command('export')
    .description('take an adapter out: as a PEFT folder, a GGUF LoRA, or merged into its base')
    .argument('<name>')
    .addOption(
      new Option('--format <format>', 'what to make').choices(['peft', 'gguf', 'merged']).makeOptionMandatory(),
    )
    .option(
      '--type <type>',
      'of the weights: merged f16, q8_0, q4_0, … (default: as the base, at least 8 bits where changed); gguf f32, f16, bf16',
    )
    .option('--out <folder>', 'where to', '.')
    .option('--force', 'replace what is there')
    .option('--json', 'as JSON')
    .action((name: string, options: ExportOptions) => exportAdapter(client(), name, options, output));

  program
    .command('evaluate')
    .description('compare models on a file of examples: loss, ROUGE, BLEU, exact match, graders; with 95 % intervals')
    .argument('<file>', 'examples as for training, or the id of an uploaded file')
    .requiredOption('--model <name>', 'may be given several times; the base goes by its id', collect)
    .option('--grader <file>', "JSON of one of OpenAI's grader objects, or a list of them", collect)
    .option('--examples <n>', 'a seeded sample of so many examples', positive)
    .option('--seed <n>', 'of the sample and the intervals', positive)
    .option('--max-tokens <n>', 'longest answer', positive)
    .option('--no-generate', 'loss, perplexity and token accuracy only')
    .option('--json', 'as JSON')
    .action((file, options) => evaluate(client(), file, options, output));
  program
    .command('promote')
    .description('let an alias stand for a model, if the criteria hold on its report')
    .argument('<alias>')
    .argument('<model>')
    .requiredOption('--require <criterion>', "such as 'rougeL >= base + 0.02' or 'loss < current'", collect)
    .option('--evaluation <id>', 'default: the newest that has the model')
    .option('--confident', 'the unfavourable end of the 95 % interval must hold')
    .option('--json', 'as JSON')
    .action((alias, model, options) => promote(client(), alias, model, options, output));
  program
    .command('rollback')
    .description('let an alias stand for what it stood for before')
    .argument('<alias>')
    .option('--json', 'as JSON')
    .action((alias, options) => rollback(client(), alias, options, output));
  program
    .command('aliases')
    .description('what each alias stands for')
    .option('--json', 'as JSON')
    .action((options) => listAliases(client(), options, output));

  program
    .command('train')
    .description('fine-tune a base model on a file: .jsonl, .json, .csv, .tsv or .parquet')
    .argument('<file>')
    .option('--base <model>', 'base model; default: the one that is served')
    .option('--name <name>', 'stands in the name of the model: ft:BASE:…:NAME:ID')
    .option('--validation <file>', 'examples to measure by, not to learn from')
    .option('--method <method>', 'supervised or dpo; default: as the data is')
    .option('--epochs <n>', 'times over the data', positive)
    .option('--batch <n>', 'examples a step', positive)
    .option('--rank <n>', 'rank of the adapter', positive)
    .option('--alpha <n>', 'scale of the adapter; default: twice the rank', Number)
    .option('--lr <n>', 'learning rate, e.g. 2e-4', Number)
    .option('--context <n>', 'longer examples are cut to so many tokens', positive)
    .option('--seed <n>', 'the same seed, the same model', Number)
    .option('--format <format>', 'chat, completion, preference, alpaca, sharegpt or table')
    .option('--columns <pairs>', 'which column holds what, e.g. prompt=question,completion=answer')
    .option('--watch', 'follow the job to its end')
    .option('--dry-run', 'check and estimate only')
    .option('--json', 'as JSON')
    .action(async (file: string, options: TrainOptions) => setCode(await train(client(), file, options, output)));

  const jobs = program.command('jobs').description('fine-tuning jobs');
  jobs
    .command('list')
    .description('newest first')
    .option('--json', 'as JSON')
    .action((options) => listJobs(client(), options, output));
  jobs
    .command('show')
    .description('all of one job, as JSON')
    .argument('<id>')
    .action((id) => showJob(client(), id, output));
  jobs
    .command('watch')
    .description('follow a job to its end')
    .argument('<id>')
    .action(async (id: string) => setCode(await watchJob(client(), id, output)));
  for (const action of ['cancel', 'pause', 'resume'] as const) {
    jobs
      .command(action)
      .description(`${action} a job`)
      .argument('<id>')
      .action((id) => actOnJob(client(), id, action, output));
  }

  const files = program.command('files').description('uploaded files');
  files
    .command('list')
    .description('newest first')
    .option('--json', 'as JSON')
    .action((options) => listFiles(client(), options, output));
  files
    .command('remove')
    .description('delete a file')
    .argument('<id>')
    .action((id) => removeFile(client(), id, output));

  const keys = program.command('keys').description('API keys of the running server');
  keys
    .command('create')
    .description('make a key; it is printed once and kept nowhere')
    .requiredOption('--name <name>', 'what it is for')
    .option('--scopes <list>', 'inference, adapters, fine_tuning, keys, metrics, admin (default: inference)', words)
    .option('--models <list>', 'only these models', words)
    .option('--rpm <n>', 'requests per minute', positive)
    .option('--tpm <n>', 'tokens per minute', positive)
    .option('--concurrency <n>', 'requests at the same time', positive)
    .option('--budget <amount>', 'what it may spend in all, in units of the currency, e.g. 2.50')
    .option('--json', 'as JSON')
    .action((options: KeyOptions) => createKey(client(), options, output));
  keys
    .command('list')
    .description('keys with their limits and what they have spent')
    .option('--json', 'as JSON')
    .action((options) => listKeys(client(), options, output));
  keys
    .command('revoke')
    .description('revoke a key, effective at once')
    .argument('<id>', 'key_…, see keys list')
    .option('--json', 'as JSON')
    .action((id, options) => revokeKey(client(), id, options, output));

  program
    .command('receipt')
    .description('save the receipt of an answer with its proof (its id is in the x-receipt-id header)')
    .argument('<id>')
    .option('--out <file>', 'where to; default: standard output')
    .action((id, options) => saveReceipt(client(), id, options, output));
  program
    .command('verify')
    .description('check a receipt offline: its form, the signature of the log, and that it is in the log')
    .argument('<file>')
    .option('--vkey <key>', "the log's public key (name+hash+key); trust nothing else")
    .option('--vkey-file <file>', 'a file that holds it')
    .option('--json', 'as JSON')
    .action(async (file: string, options: VerifyOptions) => setCode(await verify(file, options, output)));
  return program;
}

function words(text: string): string[] {
  const list = text
    .split(',')
    .map((word) => word.trim())
    .filter(Boolean);
  if (list.length === 0) throw new InvalidArgumentError('Give one or more names, separated by commas.');
  return list;
}

function collect(text: string, list: string[] = []): string[] {
  return [...list, text];
}

function positive(text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 1) throw new InvalidArgumentError('Give a whole number from 1.');
  return value;
}

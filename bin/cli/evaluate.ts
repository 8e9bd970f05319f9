/** `modelfactory evaluate`, `promote`, `rollback`, `aliases`. */

import { readFileSync, statSync } from 'node:fs';
import { basename } from 'node:path';
import type { Command } from 'commander';
import { CliError, type GatewayClient } from './client.ts';
import { type Context, collect, positive, subcommand } from './command.ts';
import { duration, liveLine } from './live.ts';
import { minute, type Output, table } from './output.ts';
import { multipart } from './upload.ts';

interface Measured {
  value: number;
  low: number;
  high: number;
}
type Scores = Record<string, Measured> & { model: string | null; graders: Record<string, Measured> };
interface Evaluation {
  id: string;
  models: string[];
  report: { examples: number; unanswered: number; seconds: number; scores: Scores[] };
}

export interface EvaluateOptions {
  model: string[];
  grader?: string[];
  examples?: number;
  seed?: number;
  maxTokens?: number;
  generate: boolean;
  json?: boolean;
}

/** Uploads the file and evaluates the models on it; a file id (file-…) is taken as it is. */
export async function evaluate(
  client: GatewayClient,
  file: string,
  options: EvaluateOptions,
  { out, note }: Output,
): Promise<void> {
  const graders = (options.grader ?? []).flatMap(readGraders);
  const id = /^file-[\w-]+$/.test(file) ? file : await upload(client, file);
  const body = {
    file: id,
    models: options.model,
    graders,
    generate: options.generate,
    stream: true,
    ...(options.examples === undefined ? {} : { examples: options.examples }),
    ...(options.seed === undefined ? {} : { seed: options.seed }),
    ...(options.maxTokens === undefined ? {} : { max_tokens: options.maxTokens }),
  };
  const line = liveLine(process.stderr, note);
  let evaluation: Evaluation | null = null;
  try {
    for await (const event of client.events('POST', '/api/evaluations', body)) {
      if (event.type === 'report') evaluation = event.evaluation as Evaluation;
      else line.show(evaluationLine(event));
    }
  } finally {
    line.clear();
  }
  if (evaluation === null) throw new CliError('The evaluation ended without a report.');
  if (options.json) {
    out(JSON.stringify(evaluation, null, 2));
    return;
  }
  out(scoreTable(evaluation));
  const { examples, unanswered, seconds } = evaluation.report;
  const left = unanswered > 0 ? `, ${unanswered} without an answer (no room in the context)` : '';
  note(`${examples} examples${left}, ${seconds.toFixed(1)} s; in brackets the 95 % interval.`);
  note(
    `Evaluation ${evaluation.id}. Promote with: npx modelfactory promote ALIAS MODEL --require 'rougeL >= base + 0.02'`,
  );
}

async function upload(client: GatewayClient, path: string): Promise<string> {
  let bytes: number;
  try {
    bytes = statSync(path).size;
  } catch {
    throw new CliError(`There is no file ${path}.`);
  }
  const form = multipart({ purpose: 'fine-tune' }, [{ path, name: basename(path), bytes }], () => {}, 'file');
  return ((await client.upload('/v1/files', form)) as { id: string }).id;
}

/** A grader object, or a list of them. */
function readGraders(path: string): object[] {
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(path, 'utf8'));
  } catch (error) {
    throw new CliError(`The grader ${path} can't be read: ${(error as Error).message}`);
  }
  if (typeof value !== 'object' || value === null) throw new CliError(`${path} holds no grader object.`);
  return Array.isArray(value) ? (value as object[]) : [value];
}

const SHOWN: [string, string][] = [
  ['loss', 'loss'],
  ['perplexity', 'perplexity'],
  ['tokenAccuracy', 'token accuracy'],
  ['rouge1', 'ROUGE-1'],
  ['rouge2', 'ROUGE-2'],
  ['rougeL', 'ROUGE-L'],
  ['bleu', 'BLEU'],
  ['exactMatch', 'exact match'],
];

function scoreTable({ models, report }: Evaluation): string {
  const cell = (measured: Measured | undefined) =>
    measured === undefined ? '-' : `${number(measured.value)} [${number(measured.low)}, ${number(measured.high)}]`;
  const rows = SHOWN.filter(([key]) => report.scores.some((scores) => scores[key] !== undefined)).map(([key, name]) => [
    name,
    ...report.scores.map((scores) => cell(scores[key])),
  ]);
  for (const name of Object.keys(report.scores[0]?.graders ?? {}))
    rows.push([`grader:${name}`, ...report.scores.map(({ graders }) => cell(graders[name]))]);
  return table(['', ...models], rows, '');
}

function number(value: number): string {
  return Math.abs(value) >= 1000 ? value.toPrecision(4) : value.toFixed(3);
}

/** What is computed, for whom, how fast, and how long it will take. */
export function evaluationLine(event: Record<string, unknown>): string {
  const { phase, done, total, model, per_second: rate, seconds_left: left } = event;
  const parts = [`${String(phase)} ${String(model ?? 'base')}: ${done}/${total}`];
  if (typeof rate === 'number') parts.push(`${rate.toFixed(1)}/s`);
  if (typeof left === 'number') parts.push(`${duration(left)} left`);
  return parts.join(' · ');
}

const CRITERION =
  /^\s*([A-Za-z][\w]*|grader:.{1,128}?)\s*(>=|<=|>|<)\s*(?:(base|current)(?:\s*([+-])\s*(\d+(?:\.\d+)?(?:e-?\d+)?))?|(-?\d+(?:\.\d+)?(?:e-?\d+)?))\s*$/i;

export interface Criterion {
  metric: string;
  op: string;
  against: string | number;
  margin?: number;
  confident?: boolean;
}

/** `rougeL >= base + 0.02`, `loss < current`, `grader:polite >= 0.8`. */
export function parseCriterion(text: string): Criterion {
  const match = CRITERION.exec(text);
  if (match === null) {
    throw new CliError(
      `"${text}" is no criterion. Write METRIC >=|<=|>|< base|current|NUMBER, with + or - a margin: 'rougeL >= base + 0.02'.`,
    );
  }
  const [, metric, op, against, sign, margin, value] = match as unknown as string[];
  const head = { metric: metric as string, op: op as string };
  if (against === undefined) return { ...head, against: Number(value) };
  const reference = against.toLowerCase();
  return margin === undefined
    ? { ...head, against: reference }
    : { ...head, against: reference, margin: sign === '-' ? -Number(margin) : Number(margin) };
}

export interface PromoteOptions {
  require: string[];
  evaluation?: string;
  confident?: boolean;
  json?: boolean;
}

interface Alias {
  alias: string;
  model: string;
  version: number;
  action: string;
  evaluation: string | null;
  created_at: number;
  criteria: { criterion: string; value: number; bound: number }[];
}

/** On the newest report that has the model, unless one is named. */
export async function promote(
  client: GatewayClient,
  alias: string,
  model: string,
  options: PromoteOptions,
  { out }: Output,
): Promise<void> {
  const criteria = options.require
    .map(parseCriterion)
    .map((one) => (options.confident ? { ...one, confident: true } : one));
  const evaluation = options.evaluation ?? (await newestOf(client, model));
  const promoted = (await client.call('POST', `/api/aliases/${encodeURIComponent(alias)}/promote`, {
    model,
    evaluation,
    criteria,
  })) as Alias;
  if (options.json) {
    out(JSON.stringify(promoted, null, 2));
    return;
  }
  for (const { criterion, value, bound } of promoted.criteria)
    out(`${criterion}: ${number(value)} (bound ${number(bound)})`);
  out(`${alias} stands for ${promoted.model} now (version ${promoted.version}).`);
}

async function newestOf(client: GatewayClient, model: string): Promise<string> {
  const { data } = (await client.call('GET', '/api/evaluations?limit=100')) as { data: Evaluation[] };
  const found = data.find(({ models }) => models.includes(model));
  if (found !== undefined) return found.id;
  throw new CliError(
    `No evaluation has ${model}. Make one with: npx modelfactory evaluate FILE --model BASE --model ${model}`,
  );
}

export async function rollback(
  client: GatewayClient,
  alias: string,
  options: { json?: boolean },
  { out }: Output,
): Promise<void> {
  const back = (await client.call('POST', `/api/aliases/${encodeURIComponent(alias)}/rollback`, {})) as Alias;
  out(
    options.json ? JSON.stringify(back, null, 2) : `${alias} stands for ${back.model} again (version ${back.version}).`,
  );
}

export async function listAliases(client: GatewayClient, options: { json?: boolean }, { out }: Output): Promise<void> {
  const { data } = (await client.call('GET', '/api/aliases')) as { data: Alias[] };
  if (options.json) {
    out(JSON.stringify(data, null, 2));
    return;
  }
  const rows = data.map(({ alias, model, version, action, evaluation, created_at }) => [
    alias,
    model,
    String(version),
    action,
    evaluation ?? '-',
    minute(created_at),
  ]);
  out(
    table(
      ['ALIAS', 'MODEL', 'VERSION', 'BY', 'EVALUATION', 'SINCE'],
      rows,
      'There are no aliases. Make one with: npx modelfactory promote ALIAS MODEL --require CRITERION',
    ),
  );
}

export function evaluationCommands(program: Command, { client, output }: Context): void {
  subcommand(
    program,
    'evaluate',
    'compare models on a file of examples: loss, ROUGE, BLEU, exact match, graders; with 95 % intervals',
  )
    .argument('<file>', 'examples as for training, or the id of an uploaded file')
    .requiredOption('--model <name>', 'may be given several times; the base goes by its id', collect)
    .option('--grader <file>', "JSON of one of OpenAI's grader objects, or a list of them", collect)
    .option('--examples <n>', 'a seeded sample of so many examples', positive)
    .option('--seed <n>', 'of the sample and the intervals', positive)
    .option('--max-tokens <n>', 'longest answer', positive)
    .option('--no-generate', 'loss, perplexity and token accuracy only')
    .action((file, options) => evaluate(client(), file, options, output));
  subcommand(program, 'promote <alias> <model>', 'let an alias stand for a model, if the criteria hold on its report')
    .requiredOption('--require <criterion>', "such as 'rougeL >= base + 0.02' or 'loss < current'", collect)
    .option('--evaluation <id>', 'default: the newest that has the model')
    .option('--confident', 'the unfavourable end of the 95 % interval must hold')
    .action((alias, model, options) => promote(client(), alias, model, options, output));
  subcommand(program, 'rollback <alias>', 'let an alias stand for what it stood for before').action((alias, options) =>
    rollback(client(), alias, options, output),
  );
  subcommand(program, 'aliases', 'what each alias stands for').action((options) =>
    listAliases(client(), options, output),
  );
}

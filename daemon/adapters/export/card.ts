/** The model card: what an adapter is, what it was made of and how well it does, for people and for the PEFT folder's README. */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { LRUCache } from 'lru-cache';
import type {
  AdapterCard,
  CardReport,
  EvaluationReport,
  EvaluationScores,
  Measured,
  Recipe,
} from '../../training/protocol.ts';
import { EXPORT_LIMITS } from '../limits.ts';
import { PEFT_MODULES } from '../peft.ts';
import { type ParsedRecord, readRecord } from '../record.ts';
import type { AdapterSummary } from '../store.ts';
import type { ExportContext } from './export.ts';

/** SHA-256 by path, size and time of change: a card is asked for more often than files change. */
const hashes = new LRUCache<string, string>({ max: EXPORT_LIMITS.hashesKept });

export interface DescribedAdapter extends Omit<AdapterCard, 'text'> {
  summary: AdapterSummary;
  record: ParsedRecord | null;
  created: number;
}

/** @throws AdapterError `not_found` */
export async function describeAdapter(
  name: string,
  { registry, model, reportsOf }: Pick<ExportContext, 'registry' | 'model' | 'reportsOf'>,
): Promise<DescribedAdapter> {
  const { digest, path, summary, created } = registry.folder(name);
  const [record, files, reports] = await Promise.all([readRecord(path), fileHashes(path), reportsOf?.(digest) ?? []]);
  return {
    name,
    digest,
    base: record?.base ?? { id: model.id, digest: model.digest },
    recipe: record?.recipe ?? null,
    dataset: record?.dataset ? pick(record.dataset) : null,
    metrics: record?.metrics ? withoutUndefined(record.metrics) : null,
    reports: reports.map((report) => cardReport(report, digest)),
    files,
    summary,
    record,
    created,
  };
}

export async function adapterCard(name: string, context: ExportContext): Promise<AdapterCard> {
  const described = await describeAdapter(name, context);
  const { summary: _summary, record: _record, created: _created, ...card } = described;
  return { ...card, text: cardText(described, described.base.id) };
}

function cardReport(report: EvaluationReport, adapter: string): CardReport {
  const { id, createdAt, baseDigest, dataset, examples, unanswered } = report;
  const scores = report.scores.filter(({ adapterDigest }) => adapterDigest === null || adapterDigest === adapter);
  return { id, createdAt, baseDigest, dataset, examples, unanswered, scores };
}

/** Markdown; the head between dashes is what model hubs read. */
export function cardText(card: DescribedAdapter, baseName: string): string {
  const { summary, record } = card;
  const head = [
    '---',
    `base_model: ${JSON.stringify(baseName)}`,
    'library_name: peft',
    'tags:',
    '- lora',
    '- modelfactory',
    '---',
  ].join('\n');
  const targets = summary.targets.map((target) => PEFT_MODULES[target].split('.').at(-1)).join(', ');
  const facts: [string, string][] = [
    ['Base model', `${plain(card.base.id)} (SHA-256 \`${card.base.digest}\`)`],
    ['Adapter', `LoRA, rank ${summary.rankMax}, on ${targets} in ${summary.layers} layers`],
    ['Digest', `\`${card.digest}\``],
    ['Added', new Date(card.created * 1000).toISOString().slice(0, 10)],
    ...(record?.run ? ([['Training run', `\`${plain(record.run)}\``]] as [string, string][]) : []),
    ...(record?.parent ? ([['Trained on from', `\`${record.parent}\``]] as [string, string][]) : []),
    ...Object.entries(record?.notes ?? {}).map(([key, value]): [string, string] => [plain(key), plain(value)]),
  ];
  const sections = [head, `# ${plain(card.name)}`, table(['', ''], facts)];
  if (card.recipe) sections.push('## Recipe', table(['', ''], recipeRows(card.recipe)));
  else sections.push('This adapter was added from elsewhere; how it was trained is not known here.');
  if (card.dataset) {
    const { digest, examples, tokens } = card.dataset;
    const validation = record?.validation
      ? ` Validation: ${number(record.validation.examples)} examples (SHA-256 \`${record.validation.digest}\`).`
      : '';
    sections.push(
      '## Data',
      `${number(examples)} examples, ${number(tokens)} tokens (SHA-256 \`${digest}\`).${validation}`,
    );
  }
  if (card.metrics) sections.push('## Training', table(['measure', 'value'], metricRows(card.metrics)));
  for (const report of card.reports) {
    sections.push(
      '## Evaluation',
      `${number(report.examples)} held-out examples, ${report.createdAt.slice(0, 10)}; in brackets the 95 % confidence interval.`,
      scoreTable(report.scores),
    );
  }
  sections.push(
    '## Files',
    table(
      ['file', 'SHA-256'],
      Object.entries(card.files).map(([file, hash]) => [`\`${file}\``, `\`${hash}\``]),
    ),
  );
  return `${sections.join('\n\n')}\n`;
}

function recipeRows(recipe: Recipe): [string, string][] {
  const { adapter, method } = recipe;
  const what =
    adapter.type === 'lora'
      ? `LoRA, rank ${adapter.rank}, alpha ${adapter.alpha}${adapter.rslora ? ' (rank-stabilised)' : ''}, dropout ${adapter.dropout}, on ${adapter.targets.join(', ')}`
      : `P-Tuning v2, ${adapter.tokens} tokens`;
  return [
    ['Method', method.type === 'dpo' ? `direct preference optimisation, beta ${method.beta}` : 'supervised'],
    ['Adapter', what],
    ['Epochs', `${recipe.epochs}${recipe.stepsMax === undefined ? '' : `, at most ${recipe.stepsMax} steps`}`],
    ['Batch', `${recipe.batchSize} examples, up to ${number(recipe.contextTokens)} tokens each`],
    [
      'Learning rate',
      `${recipe.learningRate}, ${recipe.scheduler}, warm-up ${(recipe.warmupRatio * 100).toFixed(0)} %`,
    ],
    ['AdamW', `β₁ ${recipe.adamBeta1}, β₂ ${recipe.adamBeta2}, ε ${recipe.adamEpsilon}, decay ${recipe.weightDecay}`],
    ['Clipping', recipe.clipNorm === 0 ? 'none' : `gradient norm ${recipe.clipNorm}`],
    ['Seed', String(recipe.seed)],
  ];
}

function metricRows(metrics: NonNullable<AdapterCard['metrics']>): [string, string][] {
  const rows: [string, number | undefined][] = [
    ['steps', metrics.step],
    ['training loss', metrics.trainLoss],
    ['training token accuracy', metrics.trainMeanTokenAccuracy],
    ['validation loss', metrics.fullValidLoss ?? metrics.validLoss],
    ['validation token accuracy', metrics.fullValidMeanTokenAccuracy ?? metrics.validMeanTokenAccuracy],
  ];
  return rows.flatMap(([name, value]) => (value === undefined ? [] : [[name, short(value)] as [string, string]]));
}

const SCORES = ['loss', 'perplexity', 'tokenAccuracy', 'rouge1', 'rouge2', 'rougeL', 'bleu', 'exactMatch'] as const;

function scoreTable(scores: readonly EvaluationScores[]): string {
  const graders = [...new Set(scores.flatMap((score) => Object.keys(score.graders)))];
  const rows: [string, (score: EvaluationScores) => Measured | undefined][] = [
    ...SCORES.map((key): [string, (score: EvaluationScores) => Measured | undefined] => [key, (score) => score[key]]),
    ...graders.map((key): [string, (score: EvaluationScores) => Measured | undefined] => [
      plain(key),
      (score) => (Object.hasOwn(score.graders, key) ? score.graders[key] : undefined),
    ]),
  ];
  const cell = (measured: Measured | undefined): string =>
    measured === undefined ? '' : `${short(measured.value)} (${short(measured.low)} … ${short(measured.high)})`;
  return table(
    ['', ...scores.map(({ model }) => (model === null ? 'base' : plain(model)))],
    rows
      .filter(([, of]) => scores.some((score) => of(score) !== undefined))
      .map(([name, of]) => [name, ...scores.map((score) => cell(of(score)))]),
  );
}

function table(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
  return [line(header), line(header.map(() => '---')), ...rows.map(line)].join('\n');
}

/** Names and notes come from other people: they must not become markup, links or new lines of the table. */
function plain(text: string): string {
  return text.replace(/\s+/g, ' ').replace(/[\\`*_{}[\]<>()#+!|~]/g, '\\$&');
}

function number(value: number): string {
  return value.toLocaleString('en-US');
}

function short(value: number): string {
  return String(Number(value.toPrecision(4)));
}

async function fileHashes(folder: string): Promise<Record<string, string>> {
  const names = (await readdir(folder)).sort();
  const found: [string, string][] = [];
  for (const name of names) found.push([name, await fileHash(join(folder, name))]);
  return Object.fromEntries(found);
}

async function fileHash(path: string): Promise<string> {
  const { size, mtimeMs } = await stat(path);
  const key = `${path}\0${size}\0${mtimeMs}`;
  const known = hashes.get(key);
  if (known !== undefined) return known;
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path, { highWaterMark: EXPORT_LIMITS.readBytes }))
    hash.update(chunk as Buffer);
  const digest = hash.digest('hex');
  hashes.set(key, digest);
  return digest;
}

function pick({ digest, examples, tokens }: NonNullable<AdapterCard['dataset']>): NonNullable<AdapterCard['dataset']> {
  return { digest, examples, tokens };
}

/** The protocol's optional fields are absent, never undefined. */
function withoutUndefined(metrics: NonNullable<ParsedRecord['metrics']>): NonNullable<AdapterCard['metrics']> {
  return Object.fromEntries(
    Object.entries(metrics).filter(([, value]) => value !== undefined),
  ) as unknown as NonNullable<AdapterCard['metrics']>;
}

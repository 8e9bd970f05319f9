/** The first part of a job's life: its files are read, checked, brought to the daemon, and "auto" becomes numbers. */
import type { BaseModel, Dataset, Estimate, Recipe } from '../../../daemon/protocol.ts';
import type { TrainingClient } from '../../daemons/training.ts';
import type { JobEstimate, JobRow } from '../../db/schema.ts';
import { limits } from '../../limits.ts';
import { checkDataset, type DatasetReport } from '../datasets/dataset.ts';
import { datasetOf } from '../datasets/of-file.ts';
import type { Problem } from '../datasets/problems.ts';
import type { Factory } from '../factory.ts';
import { parseDatanetFileId } from '../mixtures/datanet-file.ts';
import { Epoch, type SentSource, Straight } from '../mixtures/epoch.ts';
import {
  bytesOf,
  contentHashes,
  examplesIn,
  filesOf,
  partsOf,
  type Source,
  SourceDamaged,
  sourceNamed,
} from '../mixtures/sources.ts';
import type { NewSource } from './job-rows.ts';
import { resolveRecipe } from './recipe.ts';
import type { Extension } from './request.ts';

/** Why a job failed, as its owner is told. */
export class JobFailure extends Error {
  readonly code: string;
  readonly param: string | null;
  readonly problems: Problem[];

  constructor(code: string, message: string, param: string | null = null, problems: Problem[] = []) {
    super(message);
    this.name = 'JobFailure';
    this.code = code;
    this.param = param;
    this.problems = problems;
  }
}

export type Param = 'training_file' | 'validation_file';
const codeOf = (param: Param) => (param === 'training_file' ? 'invalid_training_file' : 'invalid_validation_file');

/** The problems in one sentence each, a few of them. */
export function summaryOf(report: DatasetReport, param: Param): string {
  const which = param === 'training_file' ? 'training' : 'validation';
  return `The job failed due to an invalid ${which} file. ${problemSummary(report)}`;
}

export function problemSummary(report: DatasetReport): string {
  const errors = report.problems.filter(({ severity }) => severity === 'error');
  const told = errors.slice(0, 3).map(({ line, message }) => (line === null ? message : `Line ${line}: ${message}`));
  const more = report.errors > told.length ? ` And ${report.errors - told.length} more.` : '';
  return `${told.join(' ')}${more}`;
}

/** What the kind of method needs of the kind of data. */
export function methodProblem(kind: DatasetReport['kind'], method: 'supervised' | 'dpo'): string | null {
  if (method === 'dpo' && kind !== 'preference')
    return `The method dpo needs examples with input, preferred_output and non_preferred_output, but these are ${kind} examples.`;
  if (method === 'supervised' && kind === 'preference')
    return 'The examples hold preferences; use the method dpo, or give chat examples.';
  return null;
}

/** What a check tells of one source. */
interface CheckedSource {
  source: Source;
  report: Pick<DatasetReport, 'kind' | 'examples' | 'warnings' | 'rules' | 'problems'>;
  /** Of its examples, for comparing with another. */
  hashes: Set<number>;
}

async function named(factory: Factory, fileId: string, param: Param): Promise<Source> {
  const source = await sourceNamed(factory, fileId);
  if (source === null) throw new JobFailure(codeOf(param), `The file ${fileId} was deleted before it was read.`, param);
  return source;
}

/** `canonical`: the hashes are to be compared with those of a Datanet, whose rows are kept as canonical JSON. */
async function checkSource(
  factory: Factory,
  source: Source,
  param: Param,
  options: { against: Set<number> | undefined; canonical: boolean; hashes: boolean },
  signal: AbortSignal,
): Promise<CheckedSource> {
  if (source.datanet === null) {
    const { report, hashes } = await checkDataset(datasetOf(factory.storage, source.file), {
      signal,
      canonical: options.canonical,
      ...(options.against === undefined ? {} : { against: options.against }),
    });
    if (!report.ok) throw new JobFailure(codeOf(param), summaryOf(report, param), param, report.problems);
    return { source, report, hashes };
  }
  // Its rows were validated one by one when they were contributed.
  const { datanet, version } = source.datanet;
  const report: CheckedSource['report'] = {
    kind: datanet.kind,
    examples: version.rows,
    warnings: 0,
    rules: {},
    problems: [],
  };
  if (!options.hashes) return { source, report, hashes: new Set() };
  const hashes = await contentHashes(factory, source.datanet, signal);
  const overlaps = [...hashes].filter((hash) => options.against?.has(hash) === true).length;
  if (overlaps > 0) {
    const message = `${overlaps} example(s) of the validation file are in the training file too, so they validate nothing.`;
    if (overlaps === hashes.size)
      throw new JobFailure(codeOf(param), `The job failed due to an invalid validation file. ${message}`, param);
    report.warnings = overlaps;
    report.rules = { overlap: overlaps };
    report.problems = [{ line: null, field: null, rule: 'overlap', severity: 'warning', message }];
  }
  return { source, report, hashes };
}

async function checkAll(
  factory: Factory,
  job: JobRow,
  signal: AbortSignal,
): Promise<{ training: CheckedSource[]; validation: CheckedSource | null }> {
  const parts = partsOf(job);
  const canonical = filesOf(job).some((id) => parseDatanetFileId(id) !== null);
  const compared = { canonical, hashes: job.validationFile !== null };
  const training: CheckedSource[] = [];
  for (const { file } of parts) {
    const source = await named(factory, file, 'training_file');
    training.push(await checkSource(factory, source, 'training_file', { ...compared, against: undefined }, signal));
  }
  const [first] = training as [CheckedSource];
  const other = training.find(({ report }) => report.kind !== first.report.kind);
  if (other !== undefined) {
    const message = `All sources of a mixture must be of one kind: ${first.source.fileId} has ${first.report.kind} examples, ${other.source.fileId} has ${other.report.kind} examples.`;
    throw new JobFailure('invalid_training_file', message, 'training_file');
  }
  const examples = training.reduce((sum, { report }) => sum + report.examples, 0);
  if (examples < limits.datasetExamplesMin) {
    const which = parts.length === 1 ? 'Training file' : 'The mixture';
    const message = `${which} has ${examples} example(s), but must have at least ${limits.datasetExamplesMin} examples`;
    throw new JobFailure('invalid_n_examples', message, 'training_file');
  }
  checkMethod(first, 'training_file', job);
  if (job.validationFile === null) return { training, validation: null };
  const against = training.length === 1 ? first.hashes : new Set(training.flatMap(({ hashes }) => [...hashes]));
  const source = await named(factory, job.validationFile, 'validation_file');
  const validation = await checkSource(factory, source, 'validation_file', { ...compared, against }, signal);
  checkMethod(validation, 'validation_file', job);
  return { training, validation };
}

function checkMethod({ report }: CheckedSource, param: Param, job: JobRow): void {
  const mismatch = methodProblem(report.kind, job.method.type);
  if (mismatch !== null) throw new JobFailure(codeOf(param), mismatch, param);
}

/** Brings the examples to the daemon. The same sources, weights and seed are the same bytes, whenever they are sent. */
async function send(
  factory: Factory,
  client: TrainingClient,
  sources: { source: Source; weight: number }[],
  seed: number,
  param: Param,
  signal: AbortSignal,
): Promise<{ dataset: Dataset; sent: SentSource[] }> {
  const streams = sources.map(({ source, weight }) => {
    return { weight, bytes: bytesOf(source), examples: examplesIn(factory, source, signal) };
  });
  const [only] = streams as [(typeof streams)[number]];
  // What breaks while the daemon reads reaches it as a broken request; the reason is kept here.
  let broken: unknown;
  const watched = async function* (lines: AsyncGenerator<Uint8Array>) {
    try {
      yield* lines;
    } catch (error) {
      broken = error;
      throw error;
    }
  };
  let epoch: Epoch | null = null;
  try {
    if (streams.length > 1) epoch = await Epoch.of(factory.storage, streams, seed);
    const whole = epoch ?? new Straight(only.examples);
    const dataset = await client.dataset(watched(whole.lines()), signal);
    checkSent(dataset, param);
    return { dataset, sent: whole.sources() };
  } catch (error) {
    const reason = broken ?? error;
    if (reason instanceof SourceDamaged) throw new JobFailure('source_damaged', reason.message, param);
    if (reason instanceof RangeError) throw new JobFailure(codeOf(param), reason.message, param);
    throw error;
  } finally {
    await epoch?.drop();
  }
}

function checkSent(dataset: Dataset, param: Param): void {
  if (dataset.problems.length === 0) return;
  const told = dataset.problems.slice(0, 3).map(({ example, message }) => `Example ${example}: ${message}`);
  const problems: Problem[] = dataset.problems.map(({ example, message }) => {
    return { line: example, field: null, rule: 'template', severity: 'error', message };
  });
  const message = `The model's chat template or tokenizer refused examples. ${told.join(' ')}`;
  throw new JobFailure(codeOf(param), message, param, problems);
}

/** The data sets of a validated job, once more. @throws JobFailure if a file is not what it was. */
export async function sendAgain(
  factory: Factory,
  client: TrainingClient,
  job: JobRow,
  signal: AbortSignal,
): Promise<void> {
  const sets = [
    { parts: partsOf(job), digest: job.dataset, param: 'training_file' as const },
    ...(job.validationFile === null
      ? []
      : [
          {
            parts: [{ file: job.validationFile, weight: 1 }],
            digest: job.validation,
            param: 'validation_file' as const,
          },
        ]),
  ];
  for (const { parts, digest, param } of sets) {
    const sources = [];
    for (const { file, weight } of parts) sources.push({ source: await named(factory, file, param), weight });
    const { dataset } = await send(factory, client, sources, job.seed, param, signal);
    if (dataset.digest === digest) continue;
    const files = parts.map(({ file }) => file).join(', ');
    throw new JobFailure(codeOf(param), `The file ${files} is not what it was.`, param);
  }
}

export function estimateView(factory: Factory, estimate: Estimate): JobEstimate {
  return {
    steps: estimate.steps,
    tokens: estimate.tokens,
    trained_tokens: estimate.trainedTokens,
    seconds: estimate.seconds,
    memory_bytes: estimate.memoryBytes,
    memory_available_bytes: estimate.memoryAvailableBytes,
    fits: estimate.fits,
    cost_micros: factory.trainingCost(estimate.trainedTokens),
    currency: factory.currency,
  };
}

/** A daemon that was started with another base model would train that under this one's name. @throws JobFailure */
export function checkBase(base: BaseModel, job: JobRow): void {
  if (base.id === job.model) return;
  const message = `The job is for the base model ${job.model}, but ${base.id} is served now. Start the daemon with the model of before, or make the job again.`;
  throw new JobFailure('base_changed', message, 'model');
}

export interface Validated {
  dataset: Dataset;
  validation: Dataset | null;
  recipe: Recipe;
  estimate: JobEstimate;
  /** What was sent of each source. */
  sources: NewSource[];
  /** Warnings of the files, to be told as one event each. */
  warnings: { param: Param; fileId: string; report: CheckedSource['report'] }[];
}

function sourceRow(
  role: NewSource['role'],
  position: number,
  { source, weight }: { source: Source; weight: number },
  sent: SentSource,
): NewSource {
  return {
    role,
    position,
    fileId: source.fileId,
    datanetId: source.datanet?.datanet.id ?? null,
    version: source.datanet?.version.number ?? null,
    root: source.datanet?.version.root ?? null,
    weight,
    ...sent,
  };
}

/** @throws JobFailure when the job cannot be; ApiError when the daemon cannot be reached, so it is tried again. */
export async function validateJob(
  factory: Factory,
  client: TrainingClient,
  job: JobRow,
  signal: AbortSignal,
): Promise<Validated> {
  const checked = await checkAll(factory, job, signal);
  const warnings: Validated['warnings'] = checked.training.map(({ source, report }) => {
    return { param: 'training_file', fileId: source.fileId, report };
  });
  const base = await client.daemon.model();
  checkBase(base, job);
  const parts = partsOf(job);
  const training = checked.training.map(({ source }, index) => ({ source, weight: parts[index]?.weight as number }));
  const { dataset, sent } = await send(factory, client, training, job.seed, 'training_file', signal);
  const sources = training.map((part, position) => sourceRow('training', position, part, sent[position] as SentSource));
  let validation: Dataset | null = null;
  if (checked.validation !== null) {
    const { source, report } = checked.validation;
    warnings.push({ param: 'validation_file', fileId: source.fileId, report });
    const part = { source, weight: 1 };
    const validating = await send(factory, client, [part], job.seed, 'validation_file', signal);
    validation = validating.dataset;
    sources.push(sourceRow('validation', 0, part, validating.sent[0] as SentSource));
  }
  const recipe = resolveRecipe({
    method: job.method,
    extension: job.extension as Extension,
    seed: job.seed,
    examples: dataset.examples,
    contextTokens: base.contextTokens,
    validation: validation?.examples ?? null,
  });
  const request = {
    dataset: dataset.digest,
    recipe,
    ...(validation === null ? {} : { validation: validation.digest }),
  };
  const estimate = estimateView(factory, await client.estimate(request, signal));
  if (!estimate.fits) {
    const message = `Training needs about ${gigabytes(estimate.memory_bytes)} of memory, but only ${gigabytes(estimate.memory_available_bytes)} are free. Lower batch_size or modelfactory.context_tokens, or set modelfactory.activation_checkpointing.`;
    throw new JobFailure('insufficient_memory', message, null);
  }
  const left = await factory.budgetLeft(job.keyId);
  if (left !== null && estimate.cost_micros > left) {
    const message = `Training will cost about ${estimate.cost_micros} micro-units, but this key, or its user, has ${left} left. Raise the budget, or train fewer epochs.`;
    throw new JobFailure('exceeded_quota', message, null);
  }
  const told = warnings.filter(({ report }) => report.warnings > 0);
  return { dataset, validation, recipe, estimate, sources, warnings: told };
}

export function gigabytes(bytes: number): string {
  return `${(bytes / 1e9).toFixed(1)} GB`;
}

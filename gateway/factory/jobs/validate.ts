/** The first part of a job's life: its files are read, checked, brought to the daemon, and "auto" becomes numbers. */
import type { BaseModel, Dataset, Estimate, Recipe } from '../../../daemon/protocol.ts';
import type { TrainingClient } from '../../daemons/training.ts';
import type { JobEstimate, JobRow } from '../../db/schema.ts';
import { limits } from '../../limits.ts';
import { type Checked, checkDataset, type DatasetReport, examplesOf } from '../datasets/dataset.ts';
import { datasetOf } from '../datasets/of-file.ts';
import type { Problem } from '../datasets/problems.ts';
import type { Factory } from '../factory.ts';
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

async function check(
  factory: Factory,
  fileId: string,
  param: Param,
  method: 'supervised' | 'dpo',
  against: Set<number> | undefined,
  signal: AbortSignal,
): Promise<Checked> {
  const row = await factory.files.get(fileId);
  if (row === null) throw new JobFailure(codeOf(param), `The file ${fileId} was deleted before it was read.`, param);
  const checked = await checkDataset(datasetOf(factory.storage, row), {
    signal,
    ...(against === undefined ? {} : { against }),
  });
  const { report } = checked;
  if (!report.ok) throw new JobFailure(codeOf(param), summaryOf(report, param), param, report.problems);
  if (param === 'training_file' && report.examples < limits.datasetExamplesMin) {
    const which = 'Training file';
    const message = `${which} has ${report.examples} example(s), but must have at least ${limits.datasetExamplesMin} examples`;
    throw new JobFailure('invalid_n_examples', message, param);
  }
  const mismatch = methodProblem(report.kind, method);
  if (mismatch !== null) throw new JobFailure(codeOf(param), mismatch, param);
  return checked;
}

async function send(
  factory: Factory,
  client: TrainingClient,
  fileId: string,
  param: Param,
  signal: AbortSignal,
): Promise<Dataset> {
  const row = await factory.files.get(fileId);
  if (row === null) throw new JobFailure(codeOf(param), `The file ${fileId} was deleted before it was read.`, param);
  const dataset = await client.dataset(examplesOf(datasetOf(factory.storage, row)), signal);
  if (dataset.problems.length > 0) {
    const told = dataset.problems.slice(0, 3).map(({ example, message }) => `Example ${example}: ${message}`);
    const problems: Problem[] = dataset.problems.map(({ example, message }) => {
      return { line: example, field: null, rule: 'template', severity: 'error', message };
    });
    throw new JobFailure(
      codeOf(param),
      `The model's chat template or tokenizer refused examples. ${told.join(' ')}`,
      param,
      problems,
    );
  }
  return dataset;
}

/** The data sets of a validated job, once more. @throws JobFailure if a file is not what it was. */
export async function sendAgain(
  factory: Factory,
  client: TrainingClient,
  job: JobRow,
  signal: AbortSignal,
): Promise<void> {
  const files = [
    { fileId: job.trainingFile, digest: job.dataset, param: 'training_file' as const },
    { fileId: job.validationFile, digest: job.validation, param: 'validation_file' as const },
  ];
  for (const { fileId, digest, param } of files) {
    if (fileId === null) continue;
    const sent = await send(factory, client, fileId, param, signal);
    if (sent.digest !== digest) throw new JobFailure(codeOf(param), `The file ${fileId} is not what it was.`, param);
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
  /** Warnings of both files, to be told as one event each. */
  warnings: { param: Param; report: DatasetReport }[];
}

/** @throws JobFailure when the job cannot be; ApiError when the daemon cannot be reached, so it is tried again. */
export async function validateJob(
  factory: Factory,
  client: TrainingClient,
  job: JobRow,
  signal: AbortSignal,
): Promise<Validated> {
  const method = job.method.type;
  const training = await check(factory, job.trainingFile, 'training_file', method, undefined, signal);
  const warnings: Validated['warnings'] = [{ param: 'training_file', report: training.report }];
  if (job.validationFile !== null) {
    const validation = await check(factory, job.validationFile, 'validation_file', method, training.hashes, signal);
    warnings.push({ param: 'validation_file', report: validation.report });
  }
  const base = await client.daemon.model();
  checkBase(base, job);
  const dataset = await send(factory, client, job.trainingFile, 'training_file', signal);
  const validation =
    job.validationFile === null ? null : await send(factory, client, job.validationFile, 'validation_file', signal);
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
    const message = `Training will cost about ${estimate.cost_micros} micro-units, but this key has ${left} left. Raise its budget, or train fewer epochs.`;
    throw new JobFailure('exceeded_quota', message, null);
  }
  return { dataset, validation, recipe, estimate, warnings: warnings.filter(({ report }) => report.warnings > 0) };
}

export function gigabytes(bytes: number): string {
  return `${(bytes / 1e9).toFixed(1)} GB`;
}

/** Jobs, events, checkpoints and permissions in OpenAI's shapes. */
import { z } from '@hono/zod-openapi';
import type { AdapterMarkRow, JobSourceRow } from '../../db/datanet-schema.ts';
import type { JobCheckpointRow, JobEventRow, JobRow } from '../../db/schema.ts';
import { markView, sourceView, viewOfMark, viewOfSource } from '../mixtures/view.ts';
import { CHECKPOINT_STATES, type CheckpointState } from './checkpoint-state.ts';
import { extensionOf, hyperparametersOf } from './recipe.ts';

const seconds = (milliseconds: number | null) => (milliseconds === null ? null : Math.floor(milliseconds / 1000));
const auto = <T extends z.ZodType>(type: T) => z.union([z.literal('auto'), type]);
const hyperparameters = z.object({
  n_epochs: auto(z.number()),
  batch_size: auto(z.number()),
  learning_rate_multiplier: auto(z.number()),
});

export const jobView = z
  .object({
    object: z.literal('fine_tuning.job'),
    id: z.string(),
    model: z.string(),
    created_at: z.number(),
    finished_at: z.number().nullable(),
    fine_tuned_model: z.string().nullable(),
    organization_id: z.string(),
    result_files: z.array(z.string()),
    status: z.enum(['validating_files', 'queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled']),
    validation_file: z.string().nullable(),
    training_file: z.string(),
    hyperparameters,
    trained_tokens: z.number().nullable(),
    error: z.object({ code: z.string(), message: z.string(), param: z.string().nullable() }).nullable(),
    integrations: z.array(z.unknown()),
    seed: z.number(),
    estimated_finish: z.number().nullable(),
    method: z.looseObject({ type: z.enum(['supervised', 'dpo']) }),
    metadata: z.record(z.string(), z.string()).nullable(),
    user_provided_suffix: z.string().nullable(),
    modelfactory: z.looseObject({ sources: z.array(sourceView), marks: z.array(markView) }).openapi({
      description:
        'Extension: settings beyond the three of OpenAI, as resolved; the estimate; the latest progress; what the job is made of, and what became of that since.',
    }),
  })
  .openapi('FineTuningJob');

export function viewOfJob(
  job: JobRow,
  sources: readonly JobSourceRow[],
  marks: readonly AdapterMarkRow[],
): z.output<typeof jobView> {
  const { mixture: _, ...extension } = job.extension;
  const { beta, ...three } = hyperparametersOf(job.method, job.recipe);
  const full = beta === undefined ? three : { ...three, beta };
  return {
    object: 'fine_tuning.job',
    id: job.id,
    model: job.model,
    created_at: seconds(job.createdAt) as number,
    finished_at: seconds(job.finishedAt),
    fine_tuned_model: job.fineTunedModel,
    organization_id: 'org-local',
    result_files: job.resultFile === null ? [] : [job.resultFile],
    status: job.status,
    validation_file: job.validationFile,
    training_file: job.trainingFile,
    hyperparameters: three,
    trained_tokens: job.trainedTokens,
    error: job.error,
    integrations: [],
    seed: job.seed,
    estimated_finish: seconds(job.estimatedFinish),
    method: { type: job.method.type, [job.method.type]: { hyperparameters: full } },
    metadata: job.metadata,
    user_provided_suffix: job.suffix,
    modelfactory: {
      ...(job.recipe === null ? extension : extensionOf(job.recipe)),
      sources: sources.map(viewOfSource),
      marks: marks.map(viewOfMark),
      estimate: job.estimate,
      progress: job.progress,
    },
  };
}

export const eventView = z
  .object({
    object: z.literal('fine_tuning.job.event'),
    id: z.string(),
    created_at: z.number(),
    level: z.enum(['info', 'warn', 'error']),
    message: z.string(),
    type: z.enum(['message', 'metrics']),
    data: z.looseObject({}),
  })
  .openapi('FineTuningJobEvent');

export function viewOfEvent(event: JobEventRow): z.output<typeof eventView> {
  return {
    object: 'fine_tuning.job.event',
    id: event.id,
    created_at: seconds(event.createdAt) as number,
    level: event.level,
    message: event.message,
    type: event.type,
    // OpenAI's schema knows no null here, though its examples do.
    data: event.data ?? {},
  };
}

export const checkpointView = z
  .object({
    object: z.literal('fine_tuning.job.checkpoint'),
    id: z.string(),
    created_at: z.number(),
    fine_tuned_model_checkpoint: z.string(),
    fine_tuning_job_id: z.string(),
    metrics: z.record(z.string(), z.number()),
    step_number: z.number(),
    modelfactory: z.object({ state: z.enum(CHECKPOINT_STATES) }).openapi({
      description:
        'Extension: whether the name can be used as a model now. removed: it was deleted, or newer checkpoints took its place; replaced: other weights have the name; unknown: not every engine answers.',
    }),
  })
  .openapi('FineTuningJobCheckpoint');

export function viewOfCheckpoint(
  checkpoint: JobCheckpointRow,
  state: CheckpointState,
): z.output<typeof checkpointView> {
  return {
    object: 'fine_tuning.job.checkpoint',
    id: checkpoint.id,
    created_at: seconds(checkpoint.createdAt) as number,
    fine_tuned_model_checkpoint: checkpoint.adapter,
    fine_tuning_job_id: checkpoint.jobId,
    metrics: checkpoint.metrics,
    step_number: checkpoint.step,
    modelfactory: { state },
  };
}

export const permissionView = z
  .object({
    object: z.literal('checkpoint.permission'),
    id: z.string(),
    created_at: z.number(),
    project_id: z.string(),
  })
  .openapi('FineTuningCheckpointPermission');

export function viewOfPermission(row: {
  id: string;
  createdAt: number;
  projectId: string;
}): z.output<typeof permissionView> {
  return {
    object: 'checkpoint.permission',
    id: row.id,
    created_at: seconds(row.createdAt) as number,
    project_id: row.projectId,
  };
}

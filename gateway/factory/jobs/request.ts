/** What POST /v1/fine_tuning/jobs takes: OpenAI's fields, and one of ours (`modelfactory`) for what OpenAI decides by itself. */
import { z } from '@hono/zod-openapi';
import { LINEAR_TARGETS } from '../../../daemon/protocol.ts';
import { integer } from '../../http/validate.ts';
import { limits } from '../../limits.ts';

const auto = z.literal('auto');
const hyperparameterFields = {
  n_epochs: z.union([auto, integer(1, 50)]).default('auto'),
  batch_size: z.union([auto, integer(1, 256)]).default('auto'),
  learning_rate_multiplier: z.union([auto, z.number().gt(0).max(1000)]).default('auto'),
};
const supervised = z.strictObject(hyperparameterFields);
const dpo = z.strictObject({ ...hyperparameterFields, beta: z.union([auto, z.number().gt(0).max(2)]).default('auto') });

export const extension = z
  .strictObject({
    rank: integer(1, 256).optional(),
    alpha: z.number().gt(0).max(4096).optional(),
    rslora: z.boolean().optional(),
    target_modules: z.union([z.literal('all-linear'), z.array(z.enum(LINEAR_TARGETS)).min(1).max(7)]).optional(),
    dropout: z.number().min(0).max(0.9).optional(),
    learning_rate: z.number().gt(0).max(1).optional(),
    scheduler: z.enum(['cosine', 'linear', 'constant']).optional(),
    warmup_ratio: z.number().min(0).max(0.5).optional(),
    weight_decay: z.number().min(0).max(1).optional(),
    max_grad_norm: z.number().min(0).max(1000).optional(),
    packing: z.boolean().optional(),
    activation_checkpointing: z.union([z.boolean(), auto]).optional(),
    early_stopping: z.strictObject({ patience: integer(1, 100), min_delta: z.number().min(0).optional() }).optional(),
    context_tokens: integer(16, 131_072).optional(),
    checkpoint_every_steps: integer(1, 1_000_000).optional(),
    validate_every_steps: integer(1, 1_000_000).optional(),
    steps_max: integer(1, 10_000_000).optional(),
    mixture: z
      .array(
        z.strictObject({
          file: z.string().min(1).max(128),
          weight: z.number().min(1e-6).max(limits.mixtureWeightMax),
        }),
      )
      .min(2)
      .max(limits.mixtureSourcesMax)
      .optional()
      .openapi({
        description:
          'Files and versions of Datanets (file-dn_…-vN) with weights. An epoch has as many examples as the sources together; each gives its share by weight.',
      }),
  })
  .openapi('ModelfactoryTraining');
export type Extension = z.output<typeof extension>;

export const method = z
  .strictObject({
    type: z.enum(['supervised', 'dpo', 'reinforcement']),
    supervised: z.strictObject({ hyperparameters: supervised.optional() }).optional(),
    dpo: z.strictObject({ hyperparameters: dpo.optional() }).optional(),
    reinforcement: z.unknown().optional(),
  })
  .openapi('FineTuneMethod');

export const metadata = z
  .record(z.string().max(64), z.string().max(512))
  .refine((pairs) => Object.keys(pairs).length <= limits.metadataPairsMax, `at most ${limits.metadataPairsMax} pairs`);

export const jobRequest = z
  .strictObject({
    model: z.string().min(1).max(256),
    training_file: z.string().min(1).max(128).nullish().openapi({
      description: 'Required without modelfactory.mixture; with it, the first file of the mixture or left out.',
    }),
    validation_file: z.string().min(1).max(128).nullish(),
    suffix: z.string().min(1).max(64).nullish(),
    seed: integer(0, 2_147_483_647).nullish(),
    method: method.nullish(),
    hyperparameters: supervised.nullish(),
    integrations: z.array(z.unknown()).max(5).nullish(),
    metadata: metadata.nullish(),
    modelfactory: extension.nullish(),
  })
  .openapi('CreateFineTuningJobRequest');
export type JobRequest = z.output<typeof jobRequest>;

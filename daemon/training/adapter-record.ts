/** What a published adapter says of how it came to be (../adapters/record.ts), from the run that made it. */
import { type AdapterRecord, adapterRecord } from '../adapters/record.ts';
import type { DatasetStore } from './dataset-store.ts';
import type { CheckpointMetrics, RunRequest } from './protocol.ts';

export interface RecordSource {
  id: string;
  request: RunRequest;
  base: { id: string; digest: string };
  datasets: Pick<DatasetStore, 'get'>;
  /** Of these weights, where they are known. */
  metrics: CheckpointMetrics | null;
}

/** undefined: something of it could not be told; the weights are published all the same. */
export async function recordOf({
  id,
  request,
  base,
  datasets,
  metrics,
}: RecordSource): Promise<AdapterRecord | undefined> {
  const facts = async (digest: string) => await datasets.get(digest).catch(() => null);
  const [dataset, validation] = await Promise.all([
    facts(request.dataset),
    request.validation === undefined ? null : facts(request.validation),
  ]);
  const parsed = adapterRecord.safeParse({
    base: { id: base.id, digest: base.digest },
    recipe: request.recipe,
    dataset: dataset && {
      digest: dataset.digest,
      examples: dataset.examples,
      tokens: dataset.tokens,
      trainedTokens: dataset.trainedTokens,
    },
    validation: validation && { digest: validation.digest, examples: validation.examples },
    metrics,
    run: id,
    notes: request.notes,
  });
  return parsed.success ? parsed.data : undefined;
}

/** results.csv of a run that is over, as a file of the job's owner. */
import type { TrainingClient } from '../../daemons/training.ts';
import type { JobRow } from '../../db/schema.ts';
import type { Factory } from '../factory.ts';

/** The same job, the same file: a gateway that stopped in between writes it again under the same id. */
export function resultFileId(job: JobRow): string {
  return `file-${job.id.slice('ftjob-'.length)}`;
}

/** One column has another name in the published results files than everywhere else. */
function azureHeader(chunk: Uint8Array): Uint8Array {
  const text = Buffer.from(chunk).toString('utf8');
  return Buffer.from(text.replace(',valid_mean_token_accuracy,', ',validation_mean_token_accuracy,'));
}

export async function storeResults(
  factory: Factory,
  job: JobRow,
  client: TrainingClient,
  signal: AbortSignal,
): Promise<string | null> {
  const id = resultFileId(job);
  if ((await factory.files.get(id)) !== null) return id;
  const body = await client.results(job.id, signal);
  if (body === null) return null;
  const draft = await factory.storage.draft(id, 0);
  try {
    let first = true;
    for await (const chunk of body as unknown as AsyncIterable<Uint8Array>) {
      await draft.write(first ? azureHeader(chunk) : chunk);
      first = false;
    }
    const sha256 = await draft.seal();
    await draft.keep();
    await factory.files.insert({
      id,
      keyId: job.keyId,
      owner: job.owner,
      filename: 'step_metrics.csv',
      purpose: 'fine-tune-results',
      bytes: draft.bytes,
      sha256,
      format: null,
      columns: null,
      createdAt: factory.now(),
      expiresAt: null,
    });
    return id;
  } catch (error) {
    await draft.drop();
    throw error;
  }
}

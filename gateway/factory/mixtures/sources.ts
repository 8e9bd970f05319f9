/** What a job is made of: files and versions of Datanets, each as a stream of examples with what each example is known by. */
import { hash } from 'node:crypto';
import { type Checkpoint, CompactRange, leafHash, openNote, parseCheckpointBody } from '../../../daemon/evidence.ts';
import type { TrainingExample } from '../../../daemon/protocol.ts';
import { contentPages } from '../../datanets/versions/version-rows.ts';
import type { FileRow, JobRow } from '../../db/schema.ts';
import { hash53 } from '../../hash53.ts';
import { read } from '../datasets/dataset.ts';
import { datasetOf } from '../datasets/of-file.ts';
import { Problems } from '../datasets/problems.ts';
import type { Factory } from '../factory.ts';
import type { DatanetFile } from './datanet-file.ts';
import { parseDatanetFileId } from './datanet-file.ts';
import { wholeWeights } from './shares.ts';

export interface MixturePart {
  file: string;
  weight: number;
}

/** The files of a job in order, with whole weights; a job without a mixture has one. */
export function partsOf(job: Pick<JobRow, 'trainingFile' | 'extension'>): MixturePart[] {
  const asked = job.extension.mixture as MixturePart[] | undefined;
  if (asked === undefined) return [{ file: job.trainingFile, weight: 1 }];
  const weights = wholeWeights(asked.map(({ weight }) => weight));
  return asked.map(({ file }, position) => ({ file, weight: weights[position] as number }));
}

export function filesOf(job: Pick<JobRow, 'trainingFile' | 'validationFile' | 'extension'>): string[] {
  return [...partsOf(job).map(({ file }) => file), ...(job.validationFile === null ? [] : [job.validationFile])];
}

export type Source =
  | { fileId: string; file: FileRow; datanet: null }
  | { fileId: string; file: null; datanet: DatanetFile };

/** Whoever owns it; null: it is not there. */
export async function sourceNamed(factory: Factory, fileId: string): Promise<Source | null> {
  if (parseDatanetFileId(fileId) !== null) {
    const datanet = await factory.datanetFiles.get(fileId);
    return datanet === null ? null : { fileId, file: null, datanet };
  }
  const file = await factory.files.get(fileId);
  return file === null ? null : { fileId, file, datanet: null };
}

/** About how many bytes its examples are. */
export function bytesOf(source: Source): number {
  return source.file?.bytes ?? Number(source.datanet?.version.statistics?.characters ?? 0);
}

export interface Example {
  /** As the daemon takes it: JSON of a TrainingExample, without a line feed. */
  line: string;
  /** What a digest is made of, 32 bytes: of a Datanet's row the RFC 6962 hash of its leaf, else SHA-256 of the line. */
  hash: Uint8Array;
}

/** Rows of a Datanet that are not what was published and signed. */
export class SourceDamaged extends Error {}

/** In the order of the file, without what is wrong in it (a file is checked before); of a Datanet in the order of its version's tree. */
export function examplesIn(factory: Factory, source: Source, signal: AbortSignal): AsyncGenerator<Example[]> {
  return source.datanet === null ? ofFile(factory, source.file) : ofDatanet(factory, source.datanet, signal);
}

async function* ofFile(factory: Factory, row: FileRow): AsyncGenerator<Example[]> {
  const reading = { format: null, problems: new Problems(), bad: 0 };
  for await (const batch of read(datasetOf(factory.storage, row), reading)) {
    yield batch.map(({ example }) => {
      const line = JSON.stringify(example);
      return { line, hash: hash('sha256', line, 'buffer') };
    });
  }
}

/**
 * What is trained on is what was published, or nothing is: each content is held against its leaf, the leaves against the root, and the root
 * against the checkpoint that was signed. So whoever can write to the database, but has not the key, changes nothing unnoticed.
 * @throws SourceDamaged
 */
async function* ofDatanet(factory: Factory, file: DatanetFile, signal: AbortSignal): AsyncGenerator<Example[]> {
  const { datanet, version } = file;
  const signed = signedRoot(factory, file);
  const range = CompactRange.empty();
  for await (const rows of contentPages(factory.client, datanet.id, version.number, { signal, entries: true })) {
    const examples: Example[] = [];
    for (const { seq, content, entry = '' } of rows) {
      if (content === null) throw new SourceDamaged(`row_${seq} of ${file.id} was withdrawn and erased.`);
      if (contentOf(entry) !== hash('sha256', content, 'hex'))
        throw new SourceDamaged(`row_${seq} of ${file.id} is not what was published. ${RESTORE}`);
      const leaf = leafHash(entry);
      range.append(leaf);
      examples.push({ line: content, hash: leaf });
    }
    yield examples;
  }
  if (BigInt(range.size) !== signed.size || !range.root().equals(signed.rootHash))
    throw new SourceDamaged(`The rows of ${file.id} do not give the root that was published. ${RESTORE}`);
}

const RESTORE =
  'The database was changed by something other than this server: restore it from a backup, or publish a new version.';

/** Of the version, as this server signed it. @throws SourceDamaged */
function signedRoot(factory: Factory, { id, datanet, version }: DatanetFile): Pick<Checkpoint, 'size' | 'rootHash'> {
  let checkpoint: Checkpoint;
  try {
    checkpoint = parseCheckpointBody(openNote(version.checkpoint, [factory.datanetKey]).text);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    throw new SourceDamaged(`The checkpoint of ${id} does not verify with this server's key for Datanets: ${why}`);
  }
  const origin = `${factory.datanetKey.name}/${datanet.id}/${version.number}`;
  if (checkpoint.origin !== origin || checkpoint.rootHash.toString('hex') !== version.root)
    throw new SourceDamaged(`The checkpoint of ${id} is that of another version. ${RESTORE}`);
  return checkpoint;
}

/** SHA-256 of the content that a leaf is of, hex; null: it is no leaf. */
function contentOf(entry: string): string | null {
  try {
    return (JSON.parse(entry) as { record: { content: string } }).record.content;
  } catch {
    return null;
  }
}

/** Contents of a Datanet's version for comparing them with another data set, as `checkDataset` does with `canonical`. */
export async function contentHashes(factory: Factory, file: DatanetFile, signal: AbortSignal): Promise<Set<number>> {
  const hashes = new Set<number>();
  for await (const rows of contentPages(factory.client, file.datanet.id, file.version.number, { signal })) {
    for (const { content } of rows) if (content !== null) hashes.add(hash53(content));
  }
  return hashes;
}

export type Kind = TrainingExample['kind'];

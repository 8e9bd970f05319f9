/** C2SP tlog-checkpoint: origin, tree size, root hash, as the text of a signed note. */
import { decodeBase64 } from './encoding.ts';
import { HASH_BYTES } from './merkle.ts';
import { NoteError, type NoteSigner, type NoteVerifier, openNote, parseNote, signNote } from './note.ts';

export interface Checkpoint {
  origin: string;
  size: bigint;
  rootHash: Buffer;
  extensions: string[];
}

export function formatCheckpoint({
  origin,
  size,
  rootHash,
}: {
  origin: string;
  size: number | bigint;
  rootHash: Uint8Array;
}): string {
  return `${origin}\n${size}\n${Buffer.from(rootHash).toString('base64')}\n`;
}

/** Body of a checkpoint (the text of its note). Throws NoteError. */
export function parseCheckpointBody(text: string): Checkpoint {
  if (!text.endsWith('\n')) throw new NoteError('A checkpoint ends in a newline.');
  const [origin, size, root, ...extensions] = text.slice(0, -1).split('\n');
  if (!origin) throw new NoteError('The first line of a checkpoint, its origin, is empty.');
  if (size === undefined || !/^(0|[1-9][0-9]{0,19})$/.test(size) || BigInt(size) >= 1n << 64n)
    throw new NoteError('The second line of a checkpoint is not a tree size.');
  const rootHash = decodeBase64(root);
  if (rootHash?.length !== HASH_BYTES)
    throw new NoteError('The third line of a checkpoint is not a base64 SHA-256 hash.');
  if (extensions.includes('')) throw new NoteError('An extension line of the checkpoint is empty.');
  return { origin, size: BigInt(size), rootHash, extensions };
}

/** Reads a checkpoint without checking its signatures. */
export function parseCheckpoint(note: string | Uint8Array): Checkpoint {
  return parseCheckpointBody(parseNote(note).text);
}

export function signCheckpoint(
  checkpoint: { size: number | bigint; rootHash: Uint8Array },
  signer: NoteSigner,
): string {
  return signNote(formatCheckpoint({ ...checkpoint, origin: signer.name }), [signer]);
}

/** A checkpoint signed by `verifier`, whose name must be the origin. Throws NoteError. */
export function openCheckpoint(note: string | Uint8Array, verifier: NoteVerifier): Checkpoint {
  const checkpoint = parseCheckpointBody(openNote(note, [verifier]).text);
  if (checkpoint.origin !== verifier.name)
    throw new NoteError(
      `The checkpoint is of the log ${JSON.stringify(checkpoint.origin)}, the key of ${JSON.stringify(verifier.name)}.`,
    );
  return checkpoint;
}

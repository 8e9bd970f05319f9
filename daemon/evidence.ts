/**
 * What evidence is made of and checked with, for both processes and the command line: RFC 6962 trees, C2SP signed notes and checkpoints,
 * canonical JSON, keys. Pure but for the key's file.
 */
export {
  type Checkpoint,
  formatCheckpoint,
  openCheckpoint,
  parseCheckpoint,
  parseCheckpointBody,
  signCheckpoint,
} from './receipts/checkpoint.ts';
export { DATANET_ROW, type DatanetRowRecord } from './receipts/datanet-row.ts';
export { canonicalJson } from './receipts/entry.ts';
export { createKey, type LogKey, loadKey } from './receipts/key.ts';
export {
  CompactRange,
  emptyRoot,
  inclusionProof,
  leafHash,
  type NodeId,
  nodeHash,
  verifyInclusion,
} from './receipts/merkle.ts';
export { type NoteVerifier, openNote, parseVkey, signNote } from './receipts/note.ts';
export { DATANET_ROW_PROOF } from './receipts/verify-datanet-row.ts';

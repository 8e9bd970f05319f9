/** The sources of a job in a few words each, as they go with the run into the adapter's record and model card. */
import type { JobSourceRow } from '../../db/datanet-schema.ts';

/** As the protocol has it: RunRequest.notes. */
const NOTE_CHARACTERS = 512;

/**
 * Only of what cannot change after the run was put, since the same run must be put with the same words. A job of one private file needs
 * none: the file's id is told anyway.
 */
export function sourceNotes(rows: readonly JobSourceRow[]): Record<string, string> {
  const training = rows.filter(({ role }) => role === 'training');
  if (training.length < 2 && rows.every(({ datanetId }) => datanetId === null)) return {};
  const notes: Record<string, string> = {};
  for (const row of rows) {
    const name = row.role === 'training' ? `source_${row.position + 1}` : `validation_source_${row.position + 1}`;
    notes[name] = noteOf(row).slice(0, NOTE_CHARACTERS);
  }
  return notes;
}

function noteOf(row: JobSourceRow): string {
  const what =
    row.datanetId === null
      ? `file ${row.fileId}`
      : `Datanet ${row.datanetId} version ${row.version}, Merkle root ${row.root}`;
  return `${what}, weight ${row.weight}, ${row.examples} examples an epoch, order sha256:${row.digest}`;
}

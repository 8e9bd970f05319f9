/** A row as it leaves: in the shapes that uploads to /v1/files take back, OpenAI's own. Same row, same bytes, always. */
import type { TrainingExample } from '../../../daemon/protocol.ts';
import type { ContentRow } from '../versions/version-rows.ts';

/** Where a row is from, in fields that uploads pass over. */
export interface Provenance {
  _row: string;
  _contributor: string;
  /** SPDX expression it was contributed under. */
  _licence: string;
  /** Of the row's canonical JSON, which is what its leaf names. */
  _content_sha256: string;
}

export function provenanceOf(row: ContentRow): Provenance {
  return {
    _row: `row_${row.seq}`,
    _contributor: row.contributor,
    _licence: row.licence,
    _content_sha256: row.contentHash,
  };
}

function callable(example: { tools?: unknown; parallelToolCalls?: boolean | undefined }): Record<string, unknown> {
  const { tools, parallelToolCalls } = example;
  return {
    ...(tools === undefined ? {} : { tools }),
    ...(parallelToolCalls === undefined ? {} : { parallel_tool_calls: parallelToolCalls }),
  };
}

export function recordOf(example: TrainingExample): Record<string, unknown> {
  switch (example.kind) {
    case 'chat':
      return { messages: example.messages, ...callable(example) };
    case 'completion':
      return { prompt: example.prompt, completion: example.completion };
    case 'preference':
      return {
        input: { messages: example.messages, ...callable(example) },
        preferred_output: [example.preferred],
        non_preferred_output: [example.rejected],
      };
  }
}

/** null: its content was erased. */
export function recordOfRow(row: ContentRow): Record<string, unknown> | null {
  return row.content === null ? null : recordOf(JSON.parse(row.content) as TrainingExample);
}

export function jsonLine(row: ContentRow, options: { provenance: boolean }): string {
  const record = recordOfRow(row);
  if (record === null) return '';
  return `${JSON.stringify(options.provenance ? { ...record, ...provenanceOf(row) } : record)}\n`;
}

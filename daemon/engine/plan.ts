import type { Sequence, SequenceKind } from './sequence.ts';

/** Who is next after a step of each kind: whoever generates has every second step. */
export const TURNS: Record<SequenceKind, SequenceKind[]> = {
  generate: ['embed', 'score', 'generate'],
  embed: ['generate', 'score', 'embed'],
  score: ['generate', 'embed', 'score'],
};

/** `count` next rows of a sequence, from its position `sequence.computed` on. */
export interface PlanRow {
  sequence: Sequence;
  count: number;
}

/** What one step computes. Rows of different kinds never share a step: they want other outputs. */
export interface Plan {
  kind: SequenceKind;
  rows: PlanRow[];
  tokens: number;
  decodeRows: number;
}

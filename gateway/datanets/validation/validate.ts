/** How good a row looks, from 0 to 100, and why it is not 100. Pure; what it says is for a reviewer, who decides. */
import type { TrainingExample } from '../../../daemon/protocol.ts';
import type { RowReason } from '../../db/datanet-schema.ts';
import { partsOf } from './text.ts';

export { textOf } from './text.ts';

export interface Verdict {
  score: number;
  reasons: RowReason[];
  /** BCP 47 code; null: too short to tell, or no language stands out. */
  language: string | null;
}

export function validateRow(example: TrainingExample, _options: { languages: readonly string[] }): Verdict {
  const reasons: RowReason[] = [];
  for (const part of partsOf(example)) {
    if (part.field !== 'prompt' && part.text.trim() === '')
      reasons.push({ rule: 'empty', points: 60, message: `${part.field} is empty.` });
  }
  const score = Math.max(0, 100 - reasons.reduce((sum, reason) => sum + reason.points, 0));
  return { score, reasons, language: null };
}

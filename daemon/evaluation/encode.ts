import type { Vocabulary } from '../../addon/types.ts';
import type { TrainingExample } from '../protocol.ts';
import { ExampleError, tokeniseExample } from '../training/tokenise.ts';

/** Tokens as training sees them; `rated[i]` 1: the prediction of token i + 1 counts in the loss. */
export interface EncodedSequence {
  tokens: Int32Array;
  rated: Uint8Array;
}

/**
 * The sequences of an example whose likelihood is its loss: of a preference the preferred answer alone. Cut at the context's
 * end, as training cuts them. Empty for an example that the model's template refuses.
 */
export function encodeExample(
  example: TrainingExample,
  vocabulary: Vocabulary,
  contextTokens: number,
): EncodedSequence[] {
  let sequences: ReturnType<typeof tokeniseExample>;
  try {
    sequences = tokeniseExample(example, vocabulary);
  } catch (error) {
    if (error instanceof ExampleError) return [];
    throw error;
  }
  const counted = example.kind === 'preference' ? sequences.slice(0, 1) : sequences;
  return counted.map(({ tokens, spans }) => {
    const length = Math.min(tokens.length, contextTokens);
    const rated = new Uint8Array(length);
    for (const [from, to] of spans) rated.fill(1, Math.min(from, length) - 1, Math.max(0, Math.min(to, length) - 1));
    return { tokens: tokens.slice(0, length), rated };
  });
}

import { existsSync } from 'node:fs';
import { EventReader } from './event-log.ts';
import type { StepMetrics } from './protocol.ts';

/** Rows of the finished steps, from the events: there is one truth. Columns as OpenAI's results file has them, and more after. */
export function* resultRows(path: string): Generator<string> {
  yield 'step,train_loss,train_mean_token_accuracy,valid_loss,valid_mean_token_accuracy,full_valid_loss,full_valid_mean_token_accuracy,learning_rate,gradient_norm,tokens\n';
  if (!existsSync(path)) return;
  const reader = new EventReader(path, 0);
  for (let events = reader.next(); events.length > 0; events = reader.next()) {
    for (const event of events) {
      if (event.type !== 'metrics') continue;
      const m = event.data as unknown as StepMetrics;
      const row = [
        m.step,
        m.trainLoss,
        m.trainMeanTokenAccuracy,
        m.validLoss,
        m.validMeanTokenAccuracy,
        m.fullValidLoss,
        m.fullValidMeanTokenAccuracy,
        m.learningRate,
        m.gradientNorm,
        m.tokens,
      ];
      yield `${row.map((value) => value ?? '').join(',')}\n`;
    }
  }
}

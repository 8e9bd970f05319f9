import { expect, it } from 'vitest';
import { Progress } from '../../../daemon/evaluation/progress.ts';
import type { EvaluationEvent } from '../../../daemon/protocol.ts';

it('tells the time left once every phase has been measured, each by itself, and nothing before', () => {
  let now = 1;
  const events: Extract<EvaluationEvent, { type: 'progress' }>[] = [];
  const progress = new Progress(
    { score: 80, generate: 80, grade: 0 },
    (event) => events.push(event),
    () => now,
  );
  progress.begin('score', null);
  for (let i = 0; i < 80; i += 1) {
    now += 300;
    progress.step();
  }
  expect(events.at(-1)).toMatchObject({ done: 80, total: 160, perSecond: 3.33, secondsLeft: null });
  progress.begin('generate', null);
  // The first of a wave says nothing about the speed of all.
  now += 20_000;
  progress.step();
  expect(events.at(-1)).toMatchObject({ done: 81, secondsLeft: null, perSecond: null });
  for (let i = 1; i < 40; i += 1) progress.step();
  now += 300;
  progress.step();
  const { secondsLeft, perSecond } = events.at(-1) as (typeof events)[number];
  expect(perSecond).toBeCloseTo(41 / 20.3, 2);
  expect(secondsLeft).toBeCloseTo((39 * 20.3) / 41, 0);
});

/** Whatever comes and leaves: never more at a time than may be, and nobody who stays is forgotten. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Turns } from '../../../gateway/factory/turns.ts';

test('never more than so many at once; those who leave while they wait hold up nobody', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 1, max: 3 }),
      fc.array(fc.record({ leaves: fc.boolean(), fails: fc.boolean() }), { minLength: 1, maxLength: 12 }),
      async (most, visitors) => {
        const turns = new Turns(most);
        let busy = 0;
        let peak = 0;
        const done = visitors.map(({ leaves, fails }) => {
          const gone = new AbortController();
          const outcome = turns.take(gone.signal, async () => {
            busy += 1;
            peak = Math.max(peak, busy);
            await new Promise((resolve) => setImmediate(resolve));
            busy -= 1;
            if (fails) throw new Error('failed');
            return 'worked';
          });
          if (leaves) gone.abort(new Error('left'));
          return outcome.catch((error: Error) => error.message);
        });
        const outcomes = await Promise.all(done);
        for (const [index, outcome] of outcomes.entries()) {
          const { leaves, fails } = visitors[index] as { leaves: boolean; fails: boolean };
          // Who has its turn at once does not wait, and so cannot leave.
          const ends = [fails ? 'failed' : 'worked', ...(leaves && index >= most ? ['left'] : [])];
          expect(ends).toContain(outcome);
          if (!leaves) expect(outcome).not.toBe('left');
        }
        expect(peak).toBeLessThanOrEqual(most);
        expect(await turns.take(new AbortController().signal, async () => 'free')).toBe('free');
      },
    ),
    { numRuns: 60 },
  );
});

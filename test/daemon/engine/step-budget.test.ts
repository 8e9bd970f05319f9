import { describe, expect, it } from 'vitest';
import { StepBudget } from '../../../daemon/engine/step-budget.ts';
import { ENGINE_LIMITS } from '../../../daemon/limits.ts';

/** A machine on which a prefill row takes 1 ms and a decode step 20 ms. */
function measured(): StepBudget {
  const budget = new StepBudget(ENGINE_LIMITS);
  for (let i = 0; i < 50; i += 1) {
    budget.observe(4, 0, 20_000);
    budget.observe(0, 100, 100_000);
  }
  return budget;
}

describe('step budget', () => {
  it('keeps the gap of decoding streams short when few prompts wait', () => {
    expect(measured().prefillRows(4, 1)).toBeCloseTo(130, -1);
    expect(measured().prefillRows(4, 4)).toBe(measured().prefillRows(4, 1));
  });
  it('lets a step take longer where more wait for their first token than decode', () => {
    expect(measured().prefillRows(1, 7)).toBeCloseTo(280, -1);
  });
  it('takes large chunks when nobody decodes', () => {
    expect(measured().prefillRows(0, 8)).toBe(512);
  });
  it('moves a prompt however slow the machine is', () => {
    const slow = new StepBudget(ENGINE_LIMITS);
    for (let i = 0; i < 50; i += 1) slow.observe(0, 16, 16_000_000);
    expect(slow.prefillRows(4, 1)).toBe(ENGINE_LIMITS.prefillRowsMin);
    expect(slow.prefillRows(0, 1)).toBe(ENGINE_LIMITS.prefillRowsAloneMin);
  });
});

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
  it('keeps the gap of decoding streams near the target', () => {
    expect(measured().prefillRows(4)).toBeCloseTo(130, -1);
  });
  it('is not thrown off by one step that stood still, and is soon itself again', () => {
    const budget = measured();
    const before = budget.prefillRows(4);
    budget.observe(4, 100, 1_800_000);
    expect(budget.prefillRows(4)).toBeGreaterThan(before * 0.8);
    budget.observe(4, 100, 120_000);
    budget.observe(4, 100, 120_000);
    expect(budget.prefillRows(4)).toBeGreaterThan(before * 0.9);
  });
  it('takes less when the machine gets slow for good', () => {
    const budget = measured();
    for (let i = 0; i < 12; i += 1) budget.observe(4, 40, 20_000 + 40 * 5_000);
    expect(budget.prefillRows(4)).toBeLessThan(40);
  });
  it('learns within a few steps how fast a machine is', () => {
    const budget = new StepBudget(ENGINE_LIMITS);
    for (let i = 0; i < 4; i += 1) budget.observe(0, 80, 80 * 600);
    expect(budget.prefillRows(1)).toBeGreaterThan(200);
  });
  it('takes large chunks when nobody decodes', () => {
    expect(measured().prefillRows(0)).toBe(512);
  });
  it('moves a prompt however slow the machine is', () => {
    const slow = new StepBudget(ENGINE_LIMITS);
    for (let i = 0; i < 50; i += 1) slow.observe(0, 16, 16_000_000);
    expect(slow.prefillRows(4)).toBe(ENGINE_LIMITS.prefillRowsMin);
    expect(slow.prefillRows(0)).toBe(ENGINE_LIMITS.prefillRowsAloneMin);
  });
});

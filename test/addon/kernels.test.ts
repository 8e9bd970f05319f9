/** Every variant of the addon's own kernels computes the same. */
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { TINY_ARCHITECTURES, writeTinyModel } from '../support/tiny-models.ts';
import { mixedLogits, runChild } from './child.ts';
import { agreement, temporaryFolder } from './rig.ts';

const folder = temporaryFolder();
afterAll(folder.remove);

/** Weakest first; each processor runs those below its best. */
const ORDER = ['baseline', 'avx2', 'avx512', 'avx512vnni'];

test.each(['f32', 'q4_1'] as const)('baseline, avx2 and the best kernels agree to float32 rounding, %s', (type) => {
  const models = TINY_ARCHITECTURES.map((a) => writeTinyModel(a, join(folder.path, `${a}-${type}.gguf`), { type }));
  const run = (kernels: string) =>
    mixedLogits(
      join(folder.path, 'out.bin'),
      { device: 'cpu', exact: false, models },
      { MODELFACTORY_KERNELS: kernels },
    );
  const best = run('');
  const baseline = run('baseline');
  expect(baseline.kernels).toBe('baseline');
  const others = [baseline];
  for (const wanted of ['avx2', 'avx512'] as const) {
    if (!ORDER.slice(0, ORDER.indexOf(best.kernels)).includes(wanted)) continue;
    const other = run(wanted);
    expect(other.kernels).toBe(wanted);
    others.push(other);
  }
  for (const other of others) {
    models.forEach((model, i) => {
      const got = agreement(best.rows[i] as Float32Array[], other.rows[i] as Float32Array[]);
      console.info(
        `${model.architecture} ${type} ${best.kernels}/${other.kernels}: mean KL ${got.mean.toExponential(1)}, Δ ${got.difference.toExponential(1)}`,
      );
      // Quantised: a last bit of a float may be a whole step of an 8-bit activation.
      expect(got.mean).toBeLessThan(type === 'f32' ? 1e-7 : 1e-2);
    });
  }
  if (best.kernels === 'baseline') console.info('this processor has no other variant than baseline');
});

test.each(['', 'baseline', 'avx2', 'avx512'])(
  'training is the same to the bit on one thread and on two, whatever the sizes (kernels: %s)',
  (kernels) => {
    const [one, two] = ['1', '2'].map((threads) => {
      const child = runChild('training-workload.ts', [threads], { MODELFACTORY_KERNELS: kernels });
      expect(child.status, child.stderr.slice(-2000)).toBe(0);
      return child.stdout.trim().split('\n').at(-1);
    });
    expect(one).toMatch(/^finished [0-9a-f]{64}$/);
    expect(two).toBe(one);
  },
);

/** The GPU path (stacked slots, gathered products, ggml's attention) on Vulkan, by Mesa's software driver. */
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { loadModel } from '../../addon/index.ts';
import { TINY_ARCHITECTURES, writeTinyModel } from '../support/tiny-models.ts';
import { mixedLogits } from './child.ts';
import { agreement, temporaryFolder } from './rig.ts';

const folder = temporaryFolder();
afterAll(folder.remove);

/** ggml hides devices that report themselves as processors unless they are named. */
const SHOWN = { GGML_VK_VISIBLE_DEVICES: '0' };
const TYPES = ['f32', 'f16', 'q8_0', 'q4_1'] as const;
/** Mean KL in nats. Vulkan rounds activations and accumulates attention in float16; quantised products round to 8 bits on the CPU only. */
const LIMITS = { f32: 1e-3, f16: 1e-3, q8_0: 1e-2, q4_1: 1e-2 };

const probe = writeTinyModel('llama', join(folder.path, 'probe.gguf'), { type: 'f32' });
const seen = mixedLogits(join(folder.path, 'probe.bin'), { device: 'cpu', exact: false, models: [probe] }, SHOWN);
const vulkan = seen.listed.find((device) => device.name.startsWith('Vulkan'));
const reason = vulkan ? '' : 'no Vulkan device, not even a software one (apt-get install mesa-vulkan-drivers)';
if (reason) console.info(`skipped: ${reason}`);

describe.skipIf(reason !== '')('Vulkan', () => {
  test.skipIf(!vulkan?.software)('a software renderer is known as one, and `auto` does not take it', () => {
    expect(vulkan).toMatchObject({ software: true });
    expect(seen.automatic).toBe('CPU');
  });

  test('mixed batches of adapters on every architecture and weight type agree with the CPU', () => {
    // One process for all: the software driver compiles each shader once.
    const cases = TYPES.flatMap((type) => TINY_ARCHITECTURES.map((architecture) => ({ type, architecture })));
    const models = cases.map(({ type, architecture: a }) =>
      writeTinyModel(a, join(folder.path, `${a}-${type}.gguf`), { type }),
    );
    const cpu = mixedLogits(join(folder.path, 'cpu.bin'), { device: 'cpu', exact: true, models });
    const gpu = mixedLogits(join(folder.path, 'gpu.bin'), { device: 'vulkan', exact: false, models }, SHOWN);
    expect(new Set(gpu.devices)).toEqual(new Set([vulkan?.name]));
    expect(new Set(cpu.devices)).toEqual(new Set(['CPU']));
    for (const [i, { type, architecture }] of cases.entries()) {
      const got = agreement(cpu.rows[i] as Float32Array[], gpu.rows[i] as Float32Array[]);
      const told = `${architecture} ${type}: mean KL ${got.mean.toExponential(1)}, worst ${got.max.toExponential(1)}`;
      console.info(told);
      expect(got.rows, told).toBeGreaterThan(60);
      expect(got.mean, told).toBeLessThan(LIMITS[type]);
    }
  });
});

test('a device that is not there is an error that says what to do', () => {
  expect(() => loadModel({ path: probe.path, device: 'metal' })).toThrow(
    /MODELFACTORY_DEVICE=metal.*modelfactory doctor/,
  );
});

/** The GPU path (stacked slots, gathered products, ggml's attention) on Vulkan, by Mesa's software driver. */
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { loadModel } from '../../addon/index.ts';
import { writeTinyModel } from '../support/tiny-models.ts';
import { mixedLogits } from './child.ts';
import { agreement, temporaryFolder } from './rig.ts';

const folder = temporaryFolder();
afterAll(folder.remove);

/** ggml hides devices that report themselves as processors unless they are named. */
const SHOWN = { GGML_VK_VISIBLE_DEVICES: '0' };
/** Mean KL in nats. Vulkan rounds activations and accumulates attention in float16; quantised products round to 8 bits on the CPU only. */
const LIMITS = { f32: 1e-3, f16: 1e-3, q8_0: 1e-2 };

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

  // Mesa 22.3's driver calls a null pointer of its own when steps of both shapes with adapters run in one process, so each
  // model and part has a process of its own.
  // Chosen so that a driver that has compiled nothing yet needs less than a minute.
  const cases = [
    { architecture: 'llama', type: 'f32', part: 'prefill' },
    { architecture: 'llama', type: 'f32', part: 'decode' },
    { architecture: 'gemma3', type: 'f32', part: 'prefill' },
    { architecture: 'gemma3', type: 'f32', part: 'decode' },
    { architecture: 'qwen2', type: 'f32', part: 'prefill' },
    { architecture: 'qwen3', type: 'f32', part: 'decode' },
    { architecture: 'llama', type: 'f16', part: 'prefill' },
    { architecture: 'llama', type: 'q8_0', part: 'prefill' },
  ] as const;

  test.each(cases)(
    'a mixed batch of adapters, $architecture $type, $part, agrees with the CPU',
    ({ architecture, type, part }) => {
      const models = [writeTinyModel(architecture, join(folder.path, `${architecture}-${type}.gguf`), { type })];
      const cpu = mixedLogits(join(folder.path, 'cpu.bin'), { device: 'cpu', exact: true, models, part });
      const gpu = mixedLogits(join(folder.path, 'gpu.bin'), { device: 'vulkan', exact: false, models, part }, SHOWN);
      expect([gpu.devices, cpu.devices]).toEqual([[vulkan?.name], ['CPU']]);
      const got = agreement(cpu.rows[0] as Float32Array[], gpu.rows[0] as Float32Array[]);
      console.info(
        `${architecture} ${type} ${part}: mean KL ${got.mean.toExponential(1)}, worst ${got.max.toExponential(1)}`,
      );
      expect(got.rows).toBeGreaterThan(20);
      expect(got.mean).toBeLessThan(LIMITS[type]);
    },
  );
});

test('a device that is not there is an error that says what to do', () => {
  expect(() => loadModel({ path: probe.path, device: 'metal' })).toThrow(
    /MODELFACTORY_DEVICE=metal.*modelfactory doctor/,
  );
});

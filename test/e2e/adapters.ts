/** Eight random adapters for the default model: different ranks, layers, number formats and file formats. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { randomAdapter, SMOLLM2_135M } from '../../loadtest/bench/adapters.ts';
import { type PeftShape, writePeftAdapter } from '../support/safetensors-writer.ts';

export const SHAPE: PeftShape = {
  layers: SMOLLM2_135M.layers,
  targets: Object.fromEntries(
    Object.entries(SMOLLM2_135M.targets).map(([target, [input, output]]) => [target, { in: input, out: output }]),
  ) as PeftShape['targets'],
};

/** Name → path of a PEFT folder or a GGUF file. */
export function writeAdapters(folder: string): Map<string, string> {
  const paths = new Map<string, string>();
  const peft = (name: string, options: Parameters<typeof writePeftAdapter>[2]) => {
    writePeftAdapter(join(folder, name), SHAPE, options);
    paths.set(name, join(folder, name));
  };
  const gguf = (name: string, rank: number, seed: number) => {
    const path = join(folder, `${name}.gguf`);
    writeFileSync(path, randomAdapter(SMOLLM2_135M, rank, seed, 3).file);
    paths.set(name, path);
  };
  peft('peft-r8', { seed: 1, rank: 8, deviation: 0.025 });
  peft('peft-r2-half', { seed: 2, rank: 2, dtype: 'F16', deviation: 0.03 });
  peft('peft-attention', { seed: 3, rank: 16, dtype: 'BF16', targets: ['attn_q', 'attn_v'], deviation: 0.03 });
  peft('peft-some-layers', { seed: 4, rank: 4, layers: [3, 9, 27], deviation: 0.05 });
  peft('peft-rank-pattern', {
    seed: 5,
    rank: 4,
    targets: ['ffn_down', 'attn_output'],
    rankOf: (target) => (target === 'ffn_down' ? 12 : undefined),
    deviation: 0.03,
  });
  gguf('gguf-r8', 8, 6);
  gguf('gguf-r3', 3, 7);
  gguf('gguf-r32', 32, 8);
  return paths;
}

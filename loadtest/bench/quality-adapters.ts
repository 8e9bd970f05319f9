/** The adapters whose logits are compared: as we load them, and as a GGUF LoRA for libllama. */
import { createWriteStream, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import path from 'node:path';
import { pipeline } from 'node:stream/promises';
import { loadModel } from '../../addon/index.ts';
import type { AdapterTensorPair, ModelInfo } from '../../addon/types.ts';
import { writeLoraGguf } from '../../daemon/adapters/export/lora-gguf.ts';
import { AdapterRegistry } from '../../daemon/adapters/registry.ts';
import { type BaseShape, randomAdapter } from './adapters.ts';

export interface QualityAdapter {
  name: string;
  /** What we load. */
  file: string;
  pairs: AdapterTensorPair[];
  /** What libllama loads; the same file where that is a GGUF. */
  gguf: string;
}

const RANDOM_RANK = 8;
/** Strong enough that an engine that leaves the adapter out fails by orders of magnitude. */
const RANDOM_STRENGTH = 8;

/** The given ones in their order, or a random one where none is given; files that have to be made lie in `work`. */
export async function qualityAdapters(
  modelPath: string,
  given: readonly string[],
  work: string,
): Promise<QualityAdapter[]> {
  const model = loadModel({ path: modelPath, device: 'cpu', threads: 1 });
  const base = model.info;
  model.close();
  if (given.length === 0) {
    const random = randomAdapter(shapeOf(base), RANDOM_RANK, 7, RANDOM_STRENGTH);
    const file = path.join(work, 'random.gguf');
    writeFileSync(file, random.file);
    return [{ name: 'random adapter', file, pairs: random.pairs, gguf: file }];
  }
  const adapters: QualityAdapter[] = [];
  const registry = await AdapterRegistry.open({ root: path.join(work, 'registry'), base });
  for (const source of given) {
    const name = path.basename(source).replace(/\.gguf$/, '');
    await registry.add({ name, source: path.resolve(source) });
    const { file, pairs } = await registry.handle(name);
    const { format } = registry.folder(name).summary;
    const gguf = format === 'gguf' ? file : path.join(work, `${name}.gguf`);
    if (format !== 'gguf') {
      const handle = await open(file);
      try {
        const { chunks } = writeLoraGguf({ file: handle, base, pairs, format, name, baseName: '' });
        await pipeline(chunks, createWriteStream(gguf));
      } finally {
        await handle.close();
      }
    }
    adapters.push({ name: `adapter ${name} (${format})`, file, pairs, gguf });
  }
  return adapters;
}

function shapeOf(info: ModelInfo): BaseShape {
  const targets = Object.entries(info.targets).map(([target, size]) => [target, [size.in, size.out]]);
  return { architecture: info.architecture, layers: info.layers, targets: Object.fromEntries(targets) };
}

/** Reads the weights once: refuses what is no number, and names the adapter by what it computes. */
import { createHash, type Hash } from 'node:crypto';
import type { FileHandle } from 'node:fs/promises';
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { AdapterTensorPair } from '../../addon/types.ts';
import type { BaseShape } from '../models/inspect.ts';
import { AdapterError } from './errors.ts';
import { ADAPTER_LIMITS } from './limits.ts';
import { type AdapterFormat, DTYPE_BYTES, type Dtype } from './parsed.ts';
import { PEFT_MODULES } from './peft.ts';

/** A file up to this size is read in one go: it is needed whole to be served anyway. */
const WHOLE_FILE_BYTES = 64 * 1024 * 1024;
/** After so many bytes other work gets its turn. */
const YIELD_BYTES = 8 * 1024 * 1024;

/**
 * SHA-256, hex, over the pairs in the order of their PEFT names: for each pair its layer, target, rank, scale, types and
 * order of rows, then the bytes of A and B. Independent of the file around them, of names inside it and of the order in it.
 * @throws AdapterError if a weight is NaN, infinite, or beyond half precision's range (slots hold halves)
 */
export async function digestWeights(
  file: FileHandle,
  fileBytes: number,
  adapter: { format: AdapterFormat; pairs: readonly AdapterTensorPair[] },
  base: BaseShape,
): Promise<string> {
  const hash = createHash('sha256');
  hash.update('modelfactory adapter 1\n');
  const reader = new WeightReader(file, fileBytes, hash);
  for (const pair of [...adapter.pairs].sort((x, y) => (pairName(x) < pairName(y) ? -1 : 1))) {
    const name = pairName(pair);
    // HF order and GGUF order of the rows are two different adapters, whatever the base at hand makes of them.
    const said = [name, pair.rank, pair.scale, pair.a.dtype, pair.b.dtype, adapter.format === 'peft' ? 'hf' : 'gguf'];
    hash.update(`${JSON.stringify(said)}\n`);
    const size = base.targets[pair.target];
    await reader.read(pair.a.offset, pair.rank * size.in, pair.a.dtype, `${name}.lora_A`);
    await reader.read(pair.b.offset, pair.rank * size.out, pair.b.dtype, `${name}.lora_B`);
  }
  return hash.digest('hex');
}

function pairName(pair: AdapterTensorPair): string {
  return `layers.${pair.layer}.${PEFT_MODULES[pair.target]}`;
}

class WeightReader {
  private readonly file: FileHandle;
  private readonly fileBytes: number;
  private readonly hash: Hash;
  private buffer = Buffer.alloc(0);
  private bufferAt = 0;
  private sinceYield = 0;

  constructor(file: FileHandle, fileBytes: number, hash: Hash) {
    this.file = file;
    this.fileBytes = fileBytes;
    this.hash = hash;
  }

  async read(offset: number, elements: number, dtype: Dtype, name: string): Promise<void> {
    const end = offset + elements * DTYPE_BYTES[dtype];
    for (let at = offset; at < end; ) {
      const chunk = await this.chunk(at, Math.min(end - at, ADAPTER_LIMITS.readBytes));
      this.hash.update(chunk);
      if (hasBadWeight(chunk, dtype)) {
        throw new AdapterError(
          'weights_invalid',
          `${name} holds a weight that is NaN, infinite or beyond ±65504; the training diverged or the file is damaged`,
        );
      }
      at += chunk.byteLength;
      this.sinceYield += chunk.byteLength;
      if (this.sinceYield >= YIELD_BYTES) {
        this.sinceYield = 0;
        await nextTurn();
      }
    }
  }

  private async chunk(offset: number, bytes: number): Promise<Buffer> {
    const from = offset - this.bufferAt;
    if (from >= 0 && from + bytes <= this.buffer.byteLength) return this.buffer.subarray(from, from + bytes);
    const whole = this.fileBytes <= WHOLE_FILE_BYTES;
    this.bufferAt = whole ? 0 : offset;
    const want = whole ? this.fileBytes : Math.min(ADAPTER_LIMITS.readBytes, this.fileBytes - offset);
    if (this.buffer.byteLength !== want) this.buffer = Buffer.allocUnsafeSlow(want);
    let filled = 0;
    while (filled < want) {
      const { bytesRead } = await this.file.read(this.buffer, filled, want - filled, this.bufferAt + filled);
      if (bytesRead === 0) throw new AdapterError('corrupt', 'the weights file became shorter while it was read');
      filled += bytesRead;
    }
    return this.buffer.subarray(offset - this.bufferAt, offset - this.bufferAt + bytes);
  }
}

/** Exponent bits from which on a value is not representable in half precision (65520 rounds to infinity), NaN and Inf included. */
function hasBadWeight(chunk: Buffer, dtype: Dtype): boolean {
  const size = DTYPE_BYTES[dtype];
  // Typed arrays need their own alignment; safetensors does not promise any.
  const bytes = chunk.byteOffset % size === 0 ? chunk : Uint8Array.prototype.slice.call(chunk);
  if (dtype === 'f32') {
    const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
    for (let i = 0; i < words.length; i++) if (((words[i] as number) & 0x7fff_ffff) >= 0x477f_f000) return true;
    return false;
  }
  const least = dtype === 'f16' ? 0x7c00 : 0x4780;
  const words = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 2);
  for (let i = 0; i < words.length; i++) if (((words[i] as number) & 0x7fff) >= least) return true;
  return false;
}

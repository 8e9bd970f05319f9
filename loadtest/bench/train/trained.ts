/** What a run left, as bytes: an adapter the engine takes, or a prefix. */
import type { AdapterTensorPair, TrainedPrefix, Trainer } from '../../../addon/index.ts';
import type { Job } from './job.ts';

interface Header {
  pairs: AdapterTensorPair[];
  prefix: { layer: number; k: number; v: number; length: number }[];
}

export interface Trained {
  pairs: AdapterTensorPair[];
  /** What the offsets of `pairs` refer to. */
  file: Uint8Array;
  prefix: TrainedPrefix[];
}

/** 4 bytes header length, JSON header, float32 data; offsets count from the start of the data. */
export function encodeTrained(job: Pick<Job, 'method' | 'rank' | 'scale'>, trainer: Trainer): Buffer {
  const parts: Buffer[] = [];
  let at = 0;
  const put = (values: Float32Array): number => {
    parts.push(Buffer.from(values.buffer, values.byteOffset, values.byteLength));
    at += values.byteLength;
    return at - values.byteLength;
  };
  const header: Header = { pairs: [], prefix: [] };
  if (job.method === 'lora') {
    for (const { target, layer, a, b } of trainer.pairs()) {
      header.pairs.push({
        target,
        layer,
        rank: job.rank,
        scale: job.scale,
        a: { offset: put(a), dtype: 'f32' },
        b: { offset: put(b), dtype: 'f32' },
        // The trainer's rows are in the order of the base's.
        permuteHeads: 0,
      });
    }
  } else {
    for (const { layer, k, v } of trainer.prefix())
      header.prefix.push({ layer, k: put(k), v: put(v), length: k.length });
  }
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(json.length);
  return Buffer.concat([length, json, ...parts]);
}

export function decodeTrained(bytes: Buffer): Trained {
  const length = bytes.readUInt32LE(0);
  const header = JSON.parse(bytes.subarray(4, 4 + length).toString()) as Header;
  // A copy, so that float32 views are aligned.
  const file = Uint8Array.from(bytes.subarray(4 + length));
  const floats = (offset: number, count: number): Float32Array => new Float32Array(file.buffer, offset, count);
  return {
    pairs: header.pairs,
    file,
    prefix: header.prefix.map(({ layer, k, v, length: n }) => ({ layer, k: floats(k, n), v: floats(v, n) })),
  };
}

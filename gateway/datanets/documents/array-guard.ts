/**
 * A bound on typed arrays and decompression, which V8's heap limit does not count: a few hundred bytes of a PDF can ask for gigabytes. The
 * constructors of this process are replaced by ones that count, so this is for a process that reads one document and ends.
 */
import { documentLimits } from './document-limits.ts';

/** Smaller arrays are left to the garbage collector. */
const COUNTED_FROM = 64 * 1024;

const KINDS = [
  'ArrayBuffer',
  'Uint8Array',
  'Uint8ClampedArray',
  'Int8Array',
  'Uint16Array',
  'Int16Array',
  'Uint32Array',
  'Int32Array',
  'Float32Array',
  'Float64Array',
] as const;
const BYTES: Readonly<Record<string, number>> = {
  Uint16Array: 2,
  Int16Array: 2,
  Uint32Array: 4,
  Int32Array: 4,
  Float32Array: 4,
  Float64Array: 8,
};

export class ArrayGuard {
  #bytes = 0;
  /** A library may swallow the error; this says that it was thrown. */
  exceeded = false;

  install(): void {
    const all = globalThis as unknown as Record<string, new (...args: unknown[]) => object>;
    for (const kind of KINDS) {
      const size = BYTES[kind] ?? 1;
      const original = all[kind] as new (...args: unknown[]) => object;
      all[kind] = new Proxy(original, {
        construct: (target, args, newTarget) => {
          const [length] = args;
          if (typeof length === 'number' && length * size >= COUNTED_FROM) this.#count(length * size);
          return Reflect.construct(target, args, newTarget === all[kind] ? target : newTarget);
        },
      });
    }
    this.#boundDecompression();
  }

  #boundDecompression(): void {
    const exceed = () => this.#exceed();
    const Original = DecompressionStream;
    const Bounded = class {
      readonly readable: ReadableStream<Uint8Array>;
      readonly writable: InstanceType<typeof DecompressionStream>['writable'];
      constructor(format: 'deflate' | 'deflate-raw' | 'gzip') {
        const inner = new Original(format);
        let bytes = 0;
        const counted = new TransformStream<Uint8Array, Uint8Array>({
          transform(piece, controller) {
            bytes += piece.byteLength;
            if (bytes > documentLimits.arrayBytesMax) exceed();
            controller.enqueue(piece);
          },
        });
        this.writable = inner.writable;
        this.readable = (inner.readable as ReadableStream<Uint8Array>).pipeThrough(counted);
      }
    };
    Object.assign(globalThis, { DecompressionStream: Bounded });
  }

  #count(bytes: number): void {
    this.#bytes += bytes;
    if (bytes <= documentLimits.arrayBytesMax && this.#bytes <= documentLimits.arraysBytesMax) return;
    this.#exceed();
  }

  #exceed(): never {
    this.exceeded = true;
    throw new RangeError('the document needs more memory than it may have');
  }
}

import { readSync } from 'node:fs';
import { ModelFileError } from './gguf-errors.ts';

/**
 * Reads a file from front to back through a window of fixed size, little endian. Never holds more than the window and
 * never reads past `limit` (the file's end or the most a header may take, whichever comes first).
 */
export class FileWindow {
  private readonly fd: number;
  private readonly fileBytes: number;
  private readonly limit: number;
  private readonly buffer: Buffer;
  /** File offset of the window's first byte. */
  private windowAt = 0;
  private windowLength = 0;
  /** File offset of the next byte to hand out. */
  private at = 0;

  constructor(fd: number, fileBytes: number, headerBytesMax: number, windowBytes: number) {
    this.fd = fd;
    this.fileBytes = fileBytes;
    this.limit = Math.min(fileBytes, headerBytesMax);
    this.buffer = Buffer.allocUnsafe(windowBytes);
  }

  get position(): number {
    return this.at;
  }

  get remaining(): number {
    return this.limit - this.at;
  }

  /** A view of the next `count` bytes (≤ the window's size), valid until the next call. */
  bytes(count: number, what: string): Buffer {
    this.require(count, what);
    let from = this.at - this.windowAt;
    if (from < 0 || from + count > this.windowLength) {
      this.refill();
      from = 0;
      if (count > this.windowLength) throw this.shortRead(what);
    }
    this.at += count;
    return this.buffer.subarray(from, from + count);
  }

  skip(count: number, what: string): void {
    this.require(count, what);
    this.at += count;
  }

  u32(what: string): number {
    return this.bytes(4, what).readUInt32LE(0);
  }

  /** A 64-bit count or offset; more than 2^53 can't be true of a file. */
  u64(what: string): number {
    const value = this.bytes(8, what).readBigUInt64LE(0);
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw new ModelFileError('corrupt', `${what} is ${value}, which no file can hold; get the file again`);
    }
    return Number(value);
  }

  private require(count: number, what: string): void {
    if (count <= this.remaining) return;
    if (this.limit < this.fileBytes) {
      throw new ModelFileError(
        'too_large',
        `the header does not end within ${this.limit} bytes (at ${what}); this is not a file to be served`,
      );
    }
    throw this.shortRead(what);
  }

  private shortRead(what: string): ModelFileError {
    return new ModelFileError(
      'truncated',
      `the file ends at byte ${this.fileBytes}, inside ${what}; it was cut short, get it again`,
    );
  }

  private refill(): void {
    this.windowAt = this.at;
    this.windowLength = 0;
    const want = Math.min(this.buffer.length, this.limit - this.at);
    while (this.windowLength < want) {
      const read = readSync(
        this.fd,
        this.buffer,
        this.windowLength,
        want - this.windowLength,
        this.at + this.windowLength,
      );
      if (read === 0) break;
      this.windowLength += read;
    }
  }
}

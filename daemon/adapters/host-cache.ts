import { LRUCache } from 'lru-cache';
import type { AdapterImage } from '../../addon/types.ts';

/**
 * Adapter images in host RAM, least recently used out first, within a budget of bytes. Pinned ones are set apart and
 * never go; what they take is no longer there for the others. Owns its images: each is released exactly once, when it leaves.
 */
export class HostCache {
  readonly bytesMax: number;
  private readonly free: LRUCache<string, AdapterImage>;
  private readonly pinned = new Map<string, AdapterImage>();
  private pinnedBytes = 0;
  /** Set while an image moves between the two halves, when it leaves one without leaving the cache. */
  private moving = false;
  evictions = 0;

  constructor(bytesMax: number) {
    this.bytesMax = bytesMax;
    this.free = new LRUCache<string, AdapterImage>({
      maxSize: bytesMax,
      sizeCalculation: sizeOf,
      dispose: (image, _digest, reason) => {
        if (this.moving) return;
        if (reason === 'evict') this.evictions++;
        image.release();
      },
    });
  }

  get bytes(): number {
    return this.free.calculatedSize + this.pinnedBytes;
  }

  /** Most bytes an image may have to be kept now. */
  get roomMax(): number {
    return this.bytesMax - this.pinnedBytes;
  }

  has(digest: string): boolean {
    return this.pinned.has(digest) || this.free.has(digest);
  }

  /** Counts as a use. */
  get(digest: string): AdapterImage | undefined {
    return this.pinned.get(digest) ?? this.free.get(digest);
  }

  canAdd(image: AdapterImage): boolean {
    return sizeOf(image) <= this.roomMax;
  }

  /** Takes the image over. Only if `canAdd` and nothing is there under this digest. */
  add(digest: string, image: AdapterImage, pin: boolean): void {
    this.makeRoom(sizeOf(image));
    if (pin) {
      this.pinned.set(digest, image);
      this.pinnedBytes += sizeOf(image);
    } else {
      this.free.set(digest, image);
    }
  }

  pin(digest: string): void {
    const image = this.free.peek(digest);
    if (!image) return;
    this.moving = true;
    this.free.delete(digest);
    this.moving = false;
    this.pinned.set(digest, image);
    this.pinnedBytes += sizeOf(image);
  }

  unpin(digest: string): void {
    const image = this.pinned.get(digest);
    if (!image) return;
    this.pinned.delete(digest);
    this.pinnedBytes -= sizeOf(image);
    this.free.set(digest, image);
  }

  delete(digest: string): void {
    this.unpin(digest);
    this.free.delete(digest);
  }

  clear(): void {
    for (const digest of [...this.pinned.keys()]) this.delete(digest);
    this.free.clear();
  }

  entries(): [string, AdapterImage][] {
    return [...this.pinned.entries(), ...this.free.entries()];
  }

  /** The library knows only its own half of the budget, so the rest is made here. */
  private makeRoom(bytes: number): void {
    while (this.free.size > 0 && this.bytes + bytes > this.bytesMax) this.free.pop();
  }
}

/** The library wants whole numbers above zero. */
function sizeOf(image: AdapterImage): number {
  return Math.max(1, Math.ceil(image.bytes));
}

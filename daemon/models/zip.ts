/** One member out of a zip file on disk (a wheel is one), streamed. APPNOTE 6.3.10; stored and deflated members, no encryption. */
import { createReadStream } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import type { Readable } from 'node:stream';
import { createInflateRaw } from 'node:zlib';
import { FetchError } from './fetch-errors.ts';

const END_SIGNATURE = 0x06054b50;
const ENTRY_SIGNATURE = 0x02014b50;
const LOCAL_SIGNATURE = 0x04034b50;
/** The end record is 22 bytes and a comment of up to 65,535. */
const END_BYTES_MAX = 22 + 65_535;
const DIRECTORY_BYTES_MAX = 64 * 1024 * 1024;

interface Entry {
  method: number;
  compressedBytes: number;
  bytes: number;
  localOffset: number;
}

/** The member's bytes as a stream, and their number. Throws FetchError `archive_invalid`. */
export async function openZipMember(path: string, member: string): Promise<{ stream: Readable; bytes: number }> {
  const file = await open(path, 'r');
  try {
    const entry = await findEntry(file, member);
    const local = await readAt(file, entry.localOffset, 30);
    if (local.readUInt32LE(0) !== LOCAL_SIGNATURE) throw damaged(path);
    // Name and extra field are there again, and their lengths may differ from the directory's.
    const start = entry.localOffset + 30 + local.readUInt16LE(26) + local.readUInt16LE(28);
    const raw = createReadStream(path, { start, end: start + entry.compressedBytes - 1 });
    if (entry.method === 0) return { stream: raw, bytes: entry.bytes };
    if (entry.method !== 8)
      throw new FetchError(
        'archive_invalid',
        `${member} is compressed with method ${entry.method}; only deflate is known.`,
      );
    const inflate = createInflateRaw();
    raw.on('error', (error) => inflate.destroy(error));
    inflate.on('close', () => raw.destroy());
    return { stream: raw.pipe(inflate), bytes: entry.bytes };
  } finally {
    await file.close();
  }
}

async function findEntry(file: FileHandle, member: string): Promise<Entry> {
  const { size } = await file.stat();
  const tailBytes = Math.min(size, END_BYTES_MAX);
  const tail = await readAt(file, size - tailBytes, tailBytes);
  let end = tail.length - 22;
  while (end >= 0 && tail.readUInt32LE(end) !== END_SIGNATURE) end--;
  if (end < 0) throw damaged('The archive');
  const directoryBytes = tail.readUInt32LE(end + 12);
  const directoryOffset = tail.readUInt32LE(end + 16);
  if (directoryBytes > DIRECTORY_BYTES_MAX || directoryOffset + directoryBytes > size) throw damaged('The archive');
  const directory = await readAt(file, directoryOffset, directoryBytes);
  for (let at = 0; at + 46 <= directory.length; ) {
    if (directory.readUInt32LE(at) !== ENTRY_SIGNATURE) throw damaged('The archive');
    const nameBytes = directory.readUInt16LE(at + 28);
    const name = directory.toString('utf8', at + 46, at + 46 + nameBytes);
    if (name === member) {
      return {
        method: directory.readUInt16LE(at + 10),
        compressedBytes: directory.readUInt32LE(at + 20),
        bytes: directory.readUInt32LE(at + 24),
        localOffset: directory.readUInt32LE(at + 42),
      };
    }
    at += 46 + nameBytes + directory.readUInt16LE(at + 30) + directory.readUInt16LE(at + 32);
  }
  throw new FetchError('archive_invalid', `The archive has no ${member}.`);
}

async function readAt(file: FileHandle, position: number, bytes: number): Promise<Buffer> {
  const buffer = Buffer.alloc(bytes);
  const { bytesRead } = await file.read(buffer, 0, bytes, position);
  if (bytesRead !== bytes) throw damaged('The archive');
  return buffer;
}

function damaged(what: string): FetchError {
  return new FetchError('archive_invalid', `${what} is cut short or damaged.`);
}

/**
 * Reference logits from libllama on the same prebuilt kernels as ours. Compiles `addon/tools/libllama_logits.cpp` on demand
 * into `addon/build/tools/`. Needs g++ (or $CXX) and llama.cpp's headers: `addon/.headers` (made when the addon is
 * built), or a source checkout named by LLAMA_CPP_SOURCE.
 */
import { execFileSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';
import { projectFolder } from './report.ts';

export interface ReferenceOptions {
  modelPath: string;
  /** Token ids, or texts to be tokenised by libllama (special tokens parsed). */
  sequences: readonly (readonly number[])[] | readonly string[];
  loraPath?: string;
  /** Greedy tokens to continue each sequence by; default 0. */
  greedy?: number;
  /** Logits of only the last so many positions; default all. */
  last?: number;
  threads?: number;
  flash?: 'auto' | 'on' | 'off';
  kv?: 'f16' | 'f32';
  repack?: boolean;
}

export interface ReferenceSequence {
  tokens: Int32Array;
  /** Position whose logits come first. */
  first: number;
  /** One row of logits per position from `first` on; row i predicts token i + 1. */
  logits: Float32Array[];
  greedy: Int32Array;
}

/** Folder of the prebuilt libraries of this platform. Throws with what to do when they are not installed. */
export function librariesFolder(): string {
  const name = `@node-llama-cpp/${os.platform() === 'darwin' ? 'mac' : 'linux'}-${os.arch()}${os.platform() === 'darwin' && os.arch() === 'arm64' ? '-metal' : ''}`;
  const require = createRequire(path.join(projectFolder, 'package.json'));
  let entry: string | undefined;
  for (const folder of require.resolve.paths(name) ?? []) {
    const bins = path.join(folder, name, 'bins');
    if (existsSync(bins)) {
      entry = readdirSync(bins)
        .map((sub) => path.join(bins, sub))
        .find((sub) => statSync(sub).isDirectory());
      break;
    }
  }
  if (!entry) throw new Error(`the prebuilt libraries ${name} are not installed; run npm ci`);
  return entry;
}

function findHeader(root: string, header: string, depth: number): string | undefined {
  if (depth < 0 || !existsSync(root)) return undefined;
  const entries = readdirSync(root, { withFileTypes: true });
  if (entries.some((e) => e.isFile() && e.name === header)) return root;
  for (const e of entries) {
    if (!e.isDirectory() || e.name === 'node_modules') continue;
    const found = findHeader(path.join(root, e.name), header, depth - 1);
    if (found) return found;
  }
  return undefined;
}

function includeFolders(): string[] {
  const roots = [path.join(projectFolder, 'addon', '.headers'), process.env.LLAMA_CPP_SOURCE].filter(
    (r) => r !== undefined && r !== '',
  );
  for (const root of roots as string[]) {
    const llama = findHeader(root, 'llama.h', 4);
    const ggml = findHeader(root, 'ggml-backend.h', 4);
    if (llama && ggml) return [...new Set([llama, ggml])];
  }
  throw new Error(
    'llama.cpp headers not found: build the addon first (npm run build:addon), or name a llama.cpp checkout in LLAMA_CPP_SOURCE',
  );
}

/** Compiles the tool if it is missing or older than its source; returns its path. */
export function buildReferenceTool(): string {
  const source = path.join(projectFolder, 'addon', 'tools', 'libllama_logits.cpp');
  const folder = path.join(projectFolder, 'addon', 'build', 'tools');
  const program = path.join(folder, 'libllama_logits');
  if (existsSync(program) && statSync(program).mtimeMs >= statSync(source).mtimeMs) return program;
  mkdirSync(folder, { recursive: true });
  const libraries = librariesFolder();
  const wanted = readdirSync(libraries).filter((f) => /^lib(llama|ggml|ggml-base)(\.v[\d.]+)?\.(so|dylib)$/.test(f));
  // Compiled under another name and renamed, so that two test files starting at once never run half a program.
  const fresh = `${program}.${process.pid}`;
  execFileSync(
    process.env.CXX ?? 'c++',
    [
      '-O2',
      '-std=c++17',
      ...includeFolders().map((f) => `-I${f}`),
      source,
      '-o',
      fresh,
      ...wanted.map((f) => path.join(libraries, f)),
      `-Wl,-rpath,${libraries}`,
      ...(os.platform() === 'linux' ? [`-Wl,-rpath-link,${libraries}`] : []),
    ],
    { stdio: ['ignore', 'ignore', 'pipe'] },
  );
  renameSync(fresh, program);
  return program;
}

const escapeLine = (text: string) => text.replaceAll('\\', '\\\\').replaceAll('\n', '\\n');

/**
 * Runs the reference and hands over one sequence at a time (50 prompts × 90 positions × 49,152 logits are 900 MB, too much
 * to hold at once).
 */
export function* reference(options: ReferenceOptions): Generator<ReferenceSequence> {
  const program = buildReferenceTool();
  const folder = mkdtempSync(path.join(os.tmpdir(), 'libllama-'));
  try {
    const input = path.join(folder, 'in.txt');
    const output = path.join(folder, 'out.bin');
    const isText = typeof options.sequences[0] === 'string';
    const lines = options.sequences.map((s) => (typeof s === 'string' ? escapeLine(s) : s.join(' ')));
    writeFileSync(input, `${lines.join('\n')}\n`);
    const args = [
      options.modelPath,
      input,
      output,
      '--backends',
      librariesFolder(),
      '--threads',
      String(options.threads ?? 2),
    ];
    if (isText) args.push('--text');
    if (options.loraPath !== undefined) args.push('--lora', options.loraPath);
    if (options.greedy) args.push('--greedy', String(options.greedy));
    if (options.last) args.push('--last', String(options.last));
    if (options.flash) args.push('--flash', options.flash);
    if (options.kv) args.push('--kv', options.kv);
    if (options.repack === false) args.push('--no-repack');
    execFileSync(program, args, { stdio: ['ignore', 'ignore', 'pipe'] });
    yield* readReference(output);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Reads the tool's output file (format: head of libllama_logits.cpp). */
export function* readReference(file: string): Generator<ReferenceSequence> {
  const fd = openSync(file, 'r');
  let offset = 0;
  const take = (bytes: number): Buffer => {
    const buffer = Buffer.alloc(bytes);
    let filled = 0;
    while (filled < bytes) {
      const n = readSync(fd, buffer, filled, bytes - filled, offset);
      if (n === 0) throw new Error(`${file} ends early`);
      filled += n;
      offset += n;
    }
    return buffer;
  };
  const u32 = () => take(4).readUInt32LE(0);
  const words = (count: number) => {
    const raw = take(count * 4);
    return raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.byteLength);
  };
  try {
    if (take(4).toString('latin1') !== 'LLG1') throw new Error(`${file} is not an output of libllama_logits`);
    const vocabulary = u32();
    const count = u32();
    for (let s = 0; s < count; s++) {
      const length = u32();
      const tokens = new Int32Array(words(length));
      const first = u32();
      const logits: Float32Array[] = [];
      for (let i = first; i < length; i++) logits.push(new Float32Array(words(vocabulary)));
      const greedy = new Int32Array(words(u32()));
      yield { tokens, first, logits, greedy };
    }
  } finally {
    closeSync(fd);
  }
}

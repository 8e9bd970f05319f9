/**
 * The C++ headers of llama.cpp, of exactly the release the prebuilt libraries were made from. They come out of the git
 * bundle inside the npm package node-llama-cpp, whose own dependencies are never installed. Plain built-ins.
 */
import { createHash } from 'node:crypto';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { cacheDir, root } from './paths.mjs';
import { LIBRARIES_VERSION } from './platform.mjs';
import { npmCommand, run, SetupError, say } from './run.mjs';

/** npm's own integrity of node-llama-cpp 3.22.1: a tarball with other bytes is not used. */
export const TARBALL_INTEGRITY =
  'sha512-bltIipuWmc123H7tMIgDGKSsSrhmhlQYeVUC48XTjVW7XGJJiJJyCdlTMzQ/LiWoPkGDpcL4FviDpgw7qfTiDw==';
const TARBALL_NAME = `node-llama-cpp-${LIBRARIES_VERSION}.tgz`;
const BUNDLE_PATH = 'package/llama/gitRelease.bundle';

/** git pathspecs ("*" also crosses folders). Public headers, and those of libllama-common for templates and grammars. */
const WANTED = ['include/*.h', 'ggml/include/*.h', 'common/*.h', 'common/*.hpp', 'LICENSE'];

/** Changes whenever other headers would come out, so that an old cache or copy is not taken for a new one. */
const STAMP = `${createHash('sha256')
  .update(JSON.stringify([TARBALL_INTEGRITY, WANTED]))
  .digest('hex')}\n`;
const STAMP_FILE = '.stamp';

export const headersDir = join(root, 'addon', '.headers');

function isComplete(folder) {
  try {
    return readFileSync(join(folder, STAMP_FILE), 'utf8') === STAMP;
  } catch {
    return false;
  }
}

/** Fills `addon/.headers` if it is not there yet (a few milliseconds if it is). Returns the folder. */
export async function ensureHeaders() {
  if (isComplete(headersDir)) return headersDir;
  const cached = join(cacheDir(), 'headers', STAMP.slice(0, 16));
  if (!isComplete(cached)) await fetchHeaders(cached);
  mkdirSync(dirname(headersDir), { recursive: true });
  const fresh = mkdtempSync(join(dirname(headersDir), '.headers-'));
  cpSync(cached, fresh, { recursive: true });
  replaceFolder(fresh, headersDir);
  return headersDir;
}

async function fetchHeaders(target) {
  mkdirSync(dirname(target), { recursive: true });
  // Beside the target, so that the last step is a rename within one file system.
  const work = mkdtempSync(join(dirname(target), '.work-'));
  try {
    const bundle = join(work, 'llama.bundle');
    writeFileSync(bundle, fileInTar(gunzipSync(await fetchTarball(work)), BUNDLE_PATH));
    const repository = join(work, 'llama.git');
    await run('git', ['clone', '--quiet', '--bare', bundle, repository], {
      quiet: true,
      what: 'Unpacking the llama.cpp bundle',
    });
    const tree = join(work, 'tree');
    mkdirSync(tree);
    const checkout = ['--git-dir', repository, '--work-tree', tree, 'checkout', '--quiet', 'HEAD', '--', ...WANTED];
    await run('git', checkout, { quiet: true, what: 'Taking the headers out of the llama.cpp bundle' });
    writeFileSync(join(tree, STAMP_FILE), STAMP);
    replaceFolder(tree, target);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/** Bytes of the tarball, verified. Takes a file that somebody put into the cache by hand (machines without a network). */
async function fetchTarball(work) {
  const byHand = join(cacheDir(), TARBALL_NAME);
  let file = byHand;
  if (!existsSync(byHand)) {
    say(`Fetching the C++ headers of the libraries (npm package node-llama-cpp@${LIBRARIES_VERSION}, 36 MB, once) …`);
    const spec = `node-llama-cpp@${LIBRARIES_VERSION}`;
    const [command, args] = npmCommand([
      'pack',
      '--ignore-scripts',
      '--loglevel=error',
      '--fetch-retries=1',
      '--fetch-retry-mintimeout=1000',
      '--pack-destination',
      work,
      spec,
    ]);
    try {
      await run(command, args, { cwd: root, quiet: true, what: `npm pack ${spec}` });
    } catch (error) {
      throw new SetupError(
        `${error.message} Without a network: put ${TARBALL_NAME} from the npm registry at ${byHand}.`,
      );
    }
    file = join(work, readdirSync(work).find((name) => name.endsWith('.tgz')) ?? TARBALL_NAME);
  }
  const bytes = readFileSync(file);
  const integrity = `sha512-${createHash('sha512').update(bytes).digest('base64')}`;
  if (integrity !== TARBALL_INTEGRITY) {
    throw new SetupError(
      `${file} has the integrity ${integrity}, expected ${TARBALL_INTEGRITY}; it is not used. Delete it and try again.`,
    );
  }
  return bytes;
}

/** One regular file of a ustar archive (POSIX.1-1988): 512-byte headers, name at 0, octal size at 124, prefix at 345. */
export function fileInTar(archive, path) {
  const text = (at, length) => {
    const end = archive.subarray(at, at + length).indexOf(0);
    return archive.toString('utf8', at, at + (end < 0 ? length : end));
  };
  for (let at = 0; at + 512 <= archive.length; ) {
    const name = text(at, 100);
    if (!name) break;
    const prefix = text(at + 345, 155);
    const size = Number.parseInt(text(at + 124, 12), 8);
    if (!Number.isSafeInteger(size) || at + 512 + size > archive.length)
      throw new SetupError('The archive is cut short or damaged.');
    if ((prefix ? `${prefix}/${name}` : name) === path) return archive.subarray(at + 512, at + 512 + size);
    at += 512 + Math.ceil(size / 512) * 512;
  }
  throw new SetupError(`The archive has no ${path}.`);
}

/** Puts a finished folder where an older one may be. A crash leaves the old or the new one, or none; never a mixture. */
function replaceFolder(fresh, target) {
  try {
    rmSync(target, { recursive: true, force: true });
    renameSync(fresh, target);
  } catch (error) {
    rmSync(fresh, { recursive: true, force: true });
    // Another clone filled the shared cache in the meantime; its folder is as good as ours.
    if (!isComplete(target)) throw error;
  }
}

/** Configures and builds the native addon with CMake; costs milliseconds when nothing has changed. Plain built-ins. */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { join, relative } from 'node:path';
import { ensureHeaders, headersDir } from './headers.mjs';
import { root } from './paths.mjs';
import { LIBRARIES_VERSION, librariesDir } from './platform.mjs';
import { requireTools } from './requirements.mjs';
import { capture, run, SetupError, say } from './run.mjs';

const addonDir = join(root, 'addon');
const require = createRequire(join(root, 'package.json'));

/** Where the product lies: `addon/build/Release/modelfactory.node`, or under `addon/build-asan` with sanitizers. */
export function addonPath(sanitize = false) {
  return join(addonDir, sanitize ? 'build-asan' : 'build', 'Release', 'modelfactory.node');
}

/**
 * Builds the addon if it is missing or its sources changed since.
 * `sanitize`: with AddressSanitizer and UBSan, into its own folder. `force`: do not trust the stamp.
 */
export async function buildAddon({ sanitize = false, force = false } = {}) {
  if (!existsSync(join(addonDir, 'CMakeLists.txt')))
    throw new SetupError('addon/CMakeLists.txt is missing; the clone is incomplete.');
  await ensureHeaders();
  const product = addonPath(sanitize);
  const build = join(addonDir, sanitize ? 'build-asan' : 'build');
  const variables = cmakeVariables({ build, sanitize });
  const stampFile = join(build, '.sources');
  const stamp = sourcesStamp(variables);
  if (!force && existsSync(product) && readText(stampFile) === stamp) return product;

  requireTools(['compiler', 'cmake']);
  mkdirSync(build, { recursive: true });
  const isFresh = !existsSync(join(build, 'CMakeCache.txt'));
  say(isFresh ? 'Building the native addon …' : 'Building the native addon (sources changed) …');
  const generator = isFresh && capture('ninja', ['--version']) ? ['-G', 'Ninja'] : [];
  const definitions = Object.entries(variables).map(([name, value]) => `-D${name}=${value}`);
  await run('cmake', ['-S', addonDir, '-B', build, '--no-warn-unused-cli', ...generator, ...definitions], {
    quiet: true,
    what: 'Configuring the addon with CMake',
  });
  const jobs = String(Math.max(1, availableParallelism()));
  await run('cmake', ['--build', build, '--config', 'Release', '--parallel', jobs], {
    quiet: true,
    what: 'Compiling the addon',
  });
  if (!existsSync(product)) throw new SetupError(`The build ended without ${relative(root, product)}.`);
  // Written last: a build that was interrupted is run again. Sources edited during the build count as changed.
  writeFileSync(stampFile, stamp);
  return product;
}

function cmakeVariables({ build, sanitize }) {
  const nodeApi = require('node-api-headers');
  // node-addon-api gives its include path in quotes meant for node-gyp.
  const addonApi = require('node-addon-api').include.replace(/^"|"$/g, '');
  const slashes = (path) => path.replaceAll('\\', '/');
  const variables = {
    CMAKE_BUILD_TYPE: sanitize ? 'RelWithDebInfo' : 'Release',
    CMAKE_LIBRARY_OUTPUT_DIRECTORY: slashes(join(build, 'Release')),
    MODELFACTORY_HEADERS: slashes(headersDir),
    MODELFACTORY_LIBS: slashes(librariesDir()),
    MODELFACTORY_LIBS_VERSION: LIBRARIES_VERSION,
    NODE_API_HEADERS: slashes(nodeApi.include_dir),
    NODE_ADDON_API: slashes(addonApi),
    SANITIZE: sanitize ? 'ON' : 'OFF',
    // The names cmake-js passes, so that `npx cmake-js -d addon` and editors that know them work with the same file.
    CMAKE_JS_INC: [slashes(nodeApi.include_dir), slashes(addonApi)].join(';'),
    CMAKE_JS_SRC: '',
    CMAKE_JS_LIB: '',
  };
  // Half the time that -O2 -g takes to compile, and findings still name their lines.
  if (sanitize) variables.CMAKE_CXX_FLAGS_RELWITHDEBINFO = '-O1 -g1';
  if (process.platform === 'darwin') {
    // Node's own symbols are found when the addon is loaded, not when it is linked.
    variables.CMAKE_MODULE_LINKER_FLAGS = '-undefined dynamic_lookup';
    variables.CMAKE_SHARED_LINKER_FLAGS = '-undefined dynamic_lookup';
  }
  if (process.platform === 'win32') {
    const hook = join(root, 'node_modules', 'cmake-js', 'lib', 'cpp', 'win_delay_load_hook.cc');
    variables.CMAKE_JS_SRC = slashes(hook);
    variables.CMAKE_JS_LIB = slashes(join(build, 'node.lib'));
    variables.CMAKE_JS_NODELIB_DEF = slashes(nodeApi.def_paths.node_api_def);
    variables.CMAKE_JS_NODELIB_TARGET = slashes(join(build, 'node.lib'));
    variables.CMAKE_RUNTIME_OUTPUT_DIRECTORY = slashes(join(build, 'Release'));
  }
  return variables;
}

/** Hash over name, size and time of every source file, and over everything CMake is told. Reads no file contents. */
function sourcesStamp(variables) {
  const hash = createHash('sha256').update(
    JSON.stringify([process.platform, process.arch, process.versions.napi, variables]),
  );
  hash.update(String(readText(join(headersDir, '.stamp'))));
  const folders = ['src', 'tools'].map((folder) => join(addonDir, folder));
  for (const file of [join(addonDir, 'CMakeLists.txt'), ...folders.flatMap(filesUnder)]) {
    const { size, mtimeMs } = statSync(file);
    hash.update(`${relative(addonDir, file)}\0${size}\0${mtimeMs}\n`);
  }
  return hash.digest('hex');
}

function filesUnder(folder) {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { withFileTypes: true })
    .flatMap((entry) => (entry.isDirectory() ? filesUnder(join(folder, entry.name)) : [join(folder, entry.name)]))
    .sort();
}

function readText(file) {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return null;
  }
}

/** `modelfactory doctor [--json]`: what this machine has, what it lacks, and how to get it. Plain built-ins. */
import { accessSync, constants, existsSync, readFileSync, statfsSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { isInstalled } from '../bootstrap.mjs';
import { addonPath } from './addon.mjs';
import { cacheDir, dataDir, root } from './paths.mjs';
import { basePackage, gpuPackages, LIBRARIES_VERSION } from './platform.mjs';
import { checkTool, hintFor } from './requirements.mjs';
import { capture, SetupError } from './run.mjs';

/** Dependencies 600 MB, model 100 MB, headers and build 50 MB, and room for receipts and adapters. */
const DISK_NEEDED_BYTES = 1.5e9;

const HELP = `Usage: modelfactory doctor [options]

what this machine has and lacks, and how to get it

Options:
  --json      as JSON
  -h, --help  display help for command`;

/** `needed`: without it modelfactory does not run. Returns the exit code: 1 when something needed is missing. */
export async function doctor(args) {
  if (args.some((arg) => arg === '--help' || arg === '-h')) {
    console.log(HELP);
    return 0;
  }
  const isJson = args.includes('--json');
  const unknown = args.find((arg) => arg !== '--json');
  if (unknown) throw new SetupError(`unknown option '${unknown}'. There are --json and --help.`);
  const checks = [...needed(), ...prepared(), ...optional()];
  const missing = checks.filter((check) => check.needed && !check.ok);
  if (isJson) console.log(JSON.stringify({ ok: missing.length === 0, checks }, null, 2));
  else print(checks, missing);
  return missing.length === 0 ? 0 : 1;
}

function needed() {
  const tools = ['node', 'compiler', 'cmake', 'git'].map((tool) => {
    const { ok, found, problem, hint } = checkTool(tool);
    return { name: tool, needed: true, ok, detail: ok ? found : problem, hint: ok ? null : hint };
  });
  return [...tools, platform(), diskSpace(), writable()];
}

function platform() {
  const here = `${process.platform}-${process.arch}`;
  const name = basePackage();
  if (name === null) {
    return {
      name: 'libraries',
      needed: true,
      ok: false,
      detail: `no prebuilt ggml libraries for ${here}`,
      hint: 'use Linux, macOS or Windows on x64 or arm64',
    };
  }
  const isThere = existsSync(join(root, 'node_modules', '@node-llama-cpp', name));
  // Before the first install nothing is there, and nothing is wrong.
  const ok = isThere || !existsSync(join(root, 'node_modules'));
  const detail = isThere ? `@node-llama-cpp/${name} ${LIBRARIES_VERSION}` : `@node-llama-cpp/${name} is not installed`;
  const hint = ok ? null : `npm install --no-save @node-llama-cpp/${name}@${LIBRARIES_VERSION}`;
  return { name: 'libraries', needed: true, ok, detail: isThere || !ok ? detail : `${detail} yet`, hint };
}

function diskSpace() {
  const places = [...new Set([root, existing(dataDir()), existing(cacheDir())])];
  const free = places.map((place) => ({ place, bytes: freeBytes(place) })).sort((a, b) => a.bytes - b.bytes)[0];
  const isPrepared = existsSync(addonPath()) && modelPath() !== null;
  const needBytes = isPrepared ? DISK_NEEDED_BYTES / 10 : DISK_NEEDED_BYTES;
  const ok = free.bytes >= needBytes;
  const gigabytes = (free.bytes / 1e9).toFixed(1);
  return {
    name: 'disk',
    needed: true,
    ok,
    detail: `${gigabytes} GB free at ${free.place}`,
    hint: ok
      ? null
      : `free ${((needBytes - free.bytes) / 1e9).toFixed(1)} GB, or set MODELFACTORY_DATA and MODELFACTORY_CACHE to another disk`,
  };
}

/** The data folder and the cache, or what they will be made in. */
function writable() {
  const places = { MODELFACTORY_DATA: dataDir(), MODELFACTORY_CACHE: cacheDir() };
  const closed = Object.entries(places).find(([, place]) => !isWritable(existing(place)));
  return {
    name: 'folders',
    needed: true,
    ok: closed === undefined,
    detail: closed ? `${closed[1]} cannot be written to` : `data in ${dataDir()}`,
    hint: closed ? `look at the owner and mode of ${existing(closed[1])}, or set ${closed[0]} to another folder` : null,
  };
}

function isWritable(folder) {
  try {
    accessSync(folder, constants.W_OK | constants.X_OK);
    return statSync(folder).isDirectory();
  } catch {
    return false;
  }
}

/** What `npm start` makes by itself. */
function prepared() {
  const installed = isInstalled(false);
  const built = existsSync(addonPath());
  const model = modelPath();
  const byItself = '`npm start` does this by itself';
  return [
    {
      name: 'dependencies',
      ok: installed,
      detail: installed ? 'installed as the lockfile says' : 'not installed',
      hint: installed ? null : byItself,
    },
    {
      name: 'addon',
      ok: built,
      detail: built ? 'built' : 'not built',
      hint: built ? null : `${byItself} (or: npm run build:addon)`,
    },
    {
      name: 'base model',
      ok: model !== null,
      detail: model ?? 'not on this machine',
      hint: model ? null : `${byItself}; or set MODELFACTORY_BASE to a GGUF file`,
    },
    devices(installed && built),
  ].map((check) => ({ ...check, needed: false }));
}

function devices(canAsk) {
  if (!canAsk) return { name: 'devices', ok: false, detail: 'known once the addon is built', hint: null };
  const script = `import { listDevices } from ${JSON.stringify(join(root, 'addon', 'index.ts'))}; console.log('\\n' + JSON.stringify(listDevices()));`;
  const output = capture(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], {
    cwd: root,
    timeout: 60_000,
  });
  try {
    const list = JSON.parse(output.split('\n').at(-1));
    const words = list.map(
      (one) => `${one.name} (${one.description}${one.software ? ', software: never chosen' : ''})`,
    );
    return { name: 'devices', ok: true, detail: words.join('; '), hint: nvidiaHint(list) };
  } catch {
    return {
      name: 'devices',
      ok: false,
      detail: 'the addon could not be asked',
      hint: 'npm run build:addon -- --force',
    };
  }
}

function nvidiaHint(list) {
  const cuda = gpuPackages().find(({ name }) => name.includes('cuda'));
  const hasDriver = capture('nvidia-smi', ['-L']);
  if (!cuda || cuda.installed || !hasDriver || list.some((one) => one.name.startsWith('CUDA'))) return null;
  return `for the NVIDIA GPU: npm install --no-save @node-llama-cpp/${cuda.name}@${LIBRARIES_VERSION}`;
}

function optional() {
  const vulkan = vulkanLoader();
  const python = ['python3', 'python'].map((name) => capture(name, ['--version'])).find(Boolean) ?? null;
  const k6 = capture('k6', ['version'])?.split('\n')[0] ?? null;
  const go = capture('go', ['version']);
  const vulkanName = process.platform === 'darwin' ? null : 'vulkan';
  return [
    vulkanName && {
      name: vulkanName,
      ok: vulkan !== null,
      detail: vulkan ?? 'no Vulkan loader: GPUs are not used through Vulkan',
      hint: vulkan ? null : hintFor('vulkan'),
    },
    {
      name: 'python',
      ok: python !== null,
      detail: python ?? 'not found: a second way to fetch the model',
      hint: python ? null : hintFor('python'),
    },
    {
      name: 'load test',
      ok: Boolean(k6 || go),
      detail: k6 ?? (go ? `${go} (k6 is built with it)` : 'neither k6 nor Go: no load tests'),
      hint: k6 || go ? null : hintFor('go'),
    },
  ]
    .filter(Boolean)
    .map((check) => ({ ...check, needed: false }));
}

function vulkanLoader() {
  if (process.platform === 'win32') return existsSync('C:\\Windows\\System32\\vulkan-1.dll') ? 'vulkan-1.dll' : null;
  const cached = capture('/sbin/ldconfig', ['-p'])
    ?.split('\n')
    .find((line) => line.includes('libvulkan.so.1'));
  return cached?.split('=>').at(-1)?.trim() ?? null;
}

/** The base model's file, or null. Knows the names of models only by the files in `models/`: this runs before npm ci. */
function modelPath() {
  const base = process.env.MODELFACTORY_BASE;
  const source = readFileSync(join(root, 'daemon', 'models', 'builtin.ts'), 'utf8');
  const isName = base && !base.startsWith('hf:') && source.toLowerCase().includes(`id: '${base.toLowerCase()}'`);
  if (base && !isName) {
    if (base.startsWith('hf:')) return null;
    return isFile(resolve(base)) ? resolve(base) : null;
  }
  const file = /file: '([^']+\.gguf)'/.exec(source)?.[1] ?? '';
  return [dataDir(), cacheDir()].map((folder) => join(folder, 'models', file)).find(isFile) ?? null;
}

function isFile(path) {
  return statSync(path, { throwIfNoEntry: false })?.isFile() ?? false;
}

function existing(path) {
  for (let folder = path; ; folder = dirname(folder))
    if (existsSync(folder) || folder === dirname(folder)) return folder;
}

function freeBytes(path) {
  const { bavail, bsize } = statfsSync(path);
  return bavail * bsize;
}

function print(checks, missing) {
  const home = homedir();
  for (const { name, ok, needed: isNeeded, detail, hint } of checks) {
    const mark = ok ? 'ok     ' : isNeeded ? 'MISSING' : '-      ';
    console.log(`${mark} ${name.padEnd(13)} ${detail.replace(home, '~')}`);
    if (hint) console.log(`${' '.repeat(22)}→ ${hint}`);
  }
  console.log('');
  if (missing.length === 0) console.log('Nothing that is needed is missing. Start with: npm start');
  else console.log(`Missing: ${missing.map(({ name }) => name).join(', ')}. The lines above say how to get it.`);
}

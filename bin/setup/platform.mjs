/** Which prebuilt ggml/libllama package fits this machine. Plain built-ins. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { root } from './paths.mjs';
import { SetupError } from './run.mjs';

/** Libraries and headers must be of one release: `@node-llama-cpp/*` and `node-llama-cpp` are published together. */
export const LIBRARIES_VERSION = '3.22.1';

/** The package the addon links with. GPU packages add backends on top of it at run time. */
const BASE_PACKAGES = {
  'linux-x64': 'linux-x64',
  'linux-arm64': 'linux-arm64',
  'darwin-arm64': 'mac-arm64-metal',
  'darwin-x64': 'mac-x64',
  'win32-x64': 'win-x64',
  'win32-arm64': 'win-arm64',
};

/** Packages with GPU backends by platform, best first. CUDA is an opt-in, it is 140 MB. */
const GPU_PACKAGES = {
  'linux-x64': ['linux-x64-cuda', 'linux-x64-vulkan'],
  'win32-x64': ['win-x64-cuda', 'win-x64-vulkan'],
};

function folderOf(name) {
  return join(root, 'node_modules', '@node-llama-cpp', name, 'bins', name);
}

export function basePackage(platform = process.platform, arch = process.arch) {
  return BASE_PACKAGES[`${platform}-${arch}`] ?? null;
}

/** Folder of libggml*, libllama* that the addon links with. */
export function librariesDir() {
  const name = basePackage();
  if (!name) {
    const known = Object.keys(BASE_PACKAGES).join(', ');
    throw new SetupError(
      `There are no prebuilt ggml libraries for ${process.platform}-${process.arch}. Known: ${known}.`,
    );
  }
  const folder = folderOf(name);
  if (!existsSync(folder)) {
    throw new SetupError(
      `The libraries package @node-llama-cpp/${name} is not installed. ` +
        `Install it with: npm install --no-save @node-llama-cpp/${name}@${LIBRARIES_VERSION}`,
    );
  }
  return folder;
}

/** Installed GPU packages of this platform: name and folder, best first. */
export function gpuPackages() {
  return (GPU_PACKAGES[`${process.platform}-${process.arch}`] ?? []).map((name) => ({
    name,
    folder: folderOf(name),
    installed: existsSync(folderOf(name)),
  }));
}

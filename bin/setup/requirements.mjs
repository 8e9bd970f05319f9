/** What a machine must have, how to see whether it has it, and how to get it. Plain built-ins. */
import { existsSync } from 'node:fs';
import { capture, SetupError } from './run.mjs';

export const NODE_MINIMUM = [20, 17, 0];
export const CMAKE_MINIMUM = [3, 18, 0];

/** First version number in a text as [major, minor, patch], or null. */
export function parseVersion(text) {
  const match = /(\d+)\.(\d+)(?:\.(\d+))?/.exec(text ?? '');
  return match ? [Number(match[1]), Number(match[2]), Number(match[3] ?? 0)] : null;
}

export function isAtLeast(version, minimum) {
  for (let i = 0; i < minimum.length; i++) {
    if (version[i] !== minimum[i]) return version[i] > minimum[i];
  }
  return true;
}

/** The package manager of this machine, as the words before a package's name. */
function installer() {
  if (process.platform === 'darwin') return 'brew';
  if (process.platform === 'win32') return 'winget';
  for (const name of ['apt-get', 'dnf', 'apk', 'pacman', 'zypper']) {
    if (['/usr/bin', '/sbin', '/bin', '/usr/sbin'].some((folder) => existsSync(`${folder}/${name}`))) return name;
  }
  return null;
}

/** Commands that install a tool, by package manager; `other` where none is known. */
const HINTS = {
  compiler: {
    'apt-get': 'sudo apt-get install -y g++ make',
    dnf: 'sudo dnf install -y gcc-c++ make',
    apk: 'apk add g++ make',
    pacman: 'sudo pacman -S --needed base-devel',
    zypper: 'sudo zypper install -y gcc-c++ make',
    brew: 'xcode-select --install',
    winget:
      'winget install Microsoft.VisualStudio.2022.BuildTools --override "--add Microsoft.VisualStudio.Workload.VCTools"',
    other: 'install a C++17 compiler (g++ 11 or newer, or clang 14 or newer) and make',
  },
  cmake: {
    'apt-get': 'sudo apt-get install -y cmake',
    dnf: 'sudo dnf install -y cmake',
    apk: 'apk add cmake',
    pacman: 'sudo pacman -S cmake',
    zypper: 'sudo zypper install -y cmake',
    brew: 'brew install cmake',
    winget: 'winget install Kitware.CMake',
    other: 'see https://cmake.org/download/',
  },
  git: {
    'apt-get': 'sudo apt-get install -y git',
    dnf: 'sudo dnf install -y git',
    apk: 'apk add git',
    pacman: 'sudo pacman -S git',
    zypper: 'sudo zypper install -y git',
    brew: 'xcode-select --install',
    winget: 'winget install Git.Git',
    other: 'see https://git-scm.com/downloads',
  },
  node: {
    brew: 'brew install node@22',
    winget: 'winget install OpenJS.NodeJS.LTS',
    other: 'see https://nodejs.org/en/download (or: nvm install 22)',
  },
  vulkan: {
    'apt-get': 'sudo apt-get install -y libvulkan1 mesa-vulkan-drivers',
    dnf: 'sudo dnf install -y vulkan-loader mesa-vulkan-drivers',
    pacman: 'sudo pacman -S vulkan-icd-loader',
    other: 'install the Vulkan loader and the driver of your GPU',
  },
  go: {
    'apt-get': 'sudo apt-get install -y golang-go (or https://go.dev/dl/)',
    brew: 'brew install k6',
    winget: 'winget install GrafanaLabs.k6',
    other: 'install k6 (https://grafana.com/docs/k6/latest/set-up/install-k6/) or Go (https://go.dev/dl/)',
  },
  python: {
    'apt-get': 'sudo apt-get install -y python3-pip',
    brew: 'brew install python',
    other: 'see https://www.python.org/downloads/',
  },
};

export function hintFor(tool) {
  const hints = HINTS[tool] ?? {};
  return hints[installer() ?? 'other'] ?? hints.other ?? null;
}

/** The compiler CMake would take: $CXX, or the first of the usual names. */
function compilerVersion() {
  const names = process.env.CXX ? [process.env.CXX] : ['c++', 'g++', 'clang++'];
  for (const name of names) {
    const found = capture(name, ['--version']);
    if (found) return `${name}: ${found.split('\n')[0]}`;
  }
  // CMake finds Visual Studio through its installer, not through PATH.
  const vswhere = 'C:\\Program Files (x86)\\Microsoft Visual Studio\\Installer\\vswhere.exe';
  if (process.platform === 'win32' && existsSync(vswhere)) {
    return capture(vswhere, [
      '-latest',
      '-products',
      '*',
      '-requires',
      'Microsoft.VisualStudio.Component.VC.Tools.x86.x64',
      '-property',
      'displayName',
    ]);
  }
  return null;
}

/** Each answers { ok, found, problem }: what is there, or a clause that says what is wrong. */
const CHECKS = {
  node: () => {
    const version = parseVersion(process.versions.node);
    const ok = isAtLeast(version, NODE_MINIMUM);
    return {
      ok,
      found: `Node ${process.versions.node}`,
      problem: `Node ${process.versions.node} is too old, ${NODE_MINIMUM.join('.')} or newer is needed`,
    };
  },
  compiler: () => {
    const found = compilerVersion();
    return { ok: Boolean(found), found, problem: 'no C++ compiler was found (c++, g++, clang++ or $CXX)' };
  },
  cmake: () => {
    const found = capture('cmake', ['--version'])?.split('\n')[0] ?? null;
    if (!found) return { ok: false, found, problem: 'CMake was not found' };
    const version = parseVersion(found);
    return {
      ok: version !== null && isAtLeast(version, CMAKE_MINIMUM),
      found,
      problem: `${found} is too old, ${CMAKE_MINIMUM.join('.')} or newer is needed`,
    };
  },
  git: () => {
    const found = capture('git', ['--version']);
    return { ok: Boolean(found), found, problem: 'git was not found' };
  },
};

export function checkTool(tool) {
  return { tool, ...CHECKS[tool](), hint: hintFor(tool) };
}

/** Throws one error that names everything missing and how to get it. */
export function requireTools(tools) {
  const missing = tools.map(checkTool).filter((check) => !check.ok);
  if (missing.length === 0) return;
  const lines = missing.map((check) => `  - ${check.problem}. Get it with: ${check.hint}`);
  throw new SetupError(`This machine lacks something that modelfactory needs:\n${lines.join('\n')}`);
}

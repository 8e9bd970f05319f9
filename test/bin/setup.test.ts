/** What runs before anything is installed; in copies of the repository's bin/, so that the real one stays as it is. */
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';

const root = resolve(import.meta.dirname, '..', '..');
let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'setup-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** The set-up is plain JavaScript; its types are of no interest here. */
async function load(file: string): Promise<Record<string, (...args: never[]) => unknown>> {
  return await import(pathToFileURL(join(root, 'bin', file)).href);
}

/** A clone with nothing but what runs first. */
function bareClone(): string {
  const clone = join(folder, 'clone');
  mkdirSync(join(clone, 'addon'), { recursive: true });
  mkdirSync(join(clone, 'daemon', 'models'), { recursive: true });
  cpSync(join(root, 'bin'), join(clone, 'bin'), { recursive: true });
  cpSync(join(root, 'daemon', 'models', 'builtin.ts'), join(clone, 'daemon', 'models', 'builtin.ts'));
  writeFileSync(join(clone, 'addon', 'CMakeLists.txt'), 'project(x)\n');
  for (const file of ['package.json', 'package-lock.json']) cpSync(join(root, file), join(clone, file));
  return clone;
}

/** A PATH with only these programs, each a script that says a line. */
function pathWith(programs: Record<string, string>): string {
  const bin = join(folder, 'path');
  mkdirSync(bin, { recursive: true });
  for (const [name, line] of Object.entries(programs)) {
    writeFileSync(join(bin, name), `#!/bin/sh\necho '${line}'\n`);
    chmodSync(join(bin, name), 0o755);
  }
  return bin;
}

function node(clone: string, args: string[], env: NodeJS.ProcessEnv) {
  const { status, stdout, stderr } = spawnSync(process.execPath, args, {
    cwd: clone,
    encoding: 'utf8',
    env: { HOME: folder, MODELFACTORY_CACHE: join(folder, 'cache'), ...env },
  });
  return { status, stdout, stderr };
}

describe('a machine that lacks something', () => {
  it('is told everything at once and how to get it, before anything is downloaded', () => {
    const clone = bareClone();
    const { status, stderr } = node(clone, ['bin/start.mjs'], { PATH: pathWith({ git: 'git version 2.39.5' }) });
    expect(status).toBe(1);
    expect(stderr).toMatch(/no C\+\+ compiler was found/);
    expect(stderr).toMatch(/CMake was not found\. Get it with: /);
    expect(stderr).not.toMatch(/git was not found/);
    expect(stderr).not.toMatch(/\n {4}at /);
    expect(existsSync(join(clone, 'node_modules'))).toBe(false);
  });

  it('hears of a CMake that is too old', () => {
    const PATH = pathWith({ git: 'git version 2.39.5', 'c++': 'c++ 12', cmake: 'cmake version 3.10.2' });
    const { status, stderr } = node(bareClone(), ['bin/start.mjs'], { PATH });
    expect(status).toBe(1);
    expect(stderr).toMatch(/cmake version 3\.10\.2 is too old, 3\.18\.0 or newer is needed/);
  });

  it('fails doctor, which works before anything is installed and names what is missing', () => {
    const clone = bareClone();
    const { status, stdout } = node(clone, ['bin/modelfactory.mjs', 'doctor', '--json'], {
      PATH: pathWith({ 'c++': 'c++ 12' }),
    });
    expect(status).toBe(1);
    const { ok, checks } = JSON.parse(stdout) as {
      ok: boolean;
      checks: { name: string; needed: boolean; ok: boolean; hint: string | null }[];
    };
    expect(ok).toBe(false);
    const missing = checks.filter((check) => check.needed && !check.ok);
    expect(missing.map(({ name }) => name)).toEqual(['cmake', 'git']);
    for (const { hint } of missing) expect(hint).toBeTruthy();
    expect(checks.find(({ name }) => name === 'base model')).toMatchObject({ ok: false, needed: false });
  });

  it('passes doctor with what is needed, whatever else is missing', () => {
    const PATH = pathWith({ git: 'git version 2.39.5', 'c++': 'c++ 12', cmake: 'cmake version 3.25.1' });
    const { status, stdout } = node(bareClone(), ['bin/modelfactory.mjs', 'doctor'], { PATH });
    expect(stdout).toContain('Nothing that is needed is missing');
    expect(status).toBe(0);
  });
});

describe('the headers', () => {
  it('are not taken from a tarball with other bytes than the pinned ones', () => {
    const clone = bareClone();
    mkdirSync(join(folder, 'cache'));
    writeFileSync(join(folder, 'cache', 'node-llama-cpp-3.22.1.tgz'), 'something else');
    const { status, stderr } = node(clone, ['bin/native.mjs', '--headers'], { PATH: process.env.PATH });
    expect(status).toBe(1);
    expect(stderr).toMatch(/integrity sha512-.*expected sha512-bltIip/);
    expect(readdirSync(join(clone, 'addon'))).toEqual(['CMakeLists.txt']);
    expect(readdirSync(join(folder, 'cache', 'headers'))).toEqual([]);
  });

  it('come out of a tar archive byte by byte', async () => {
    const { fileInTar } = (await load('setup/headers.mjs')) as unknown as {
      fileInTar(archive: Buffer, path: string): Buffer;
    };
    const long = `${'d'.repeat(60)}/${'e'.repeat(60)}`;
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 2000 }), fc.uint8Array({ maxLength: 2000 }), (first, second) => {
        const source = mkdtempSync(join(folder, 'tar-'));
        mkdirSync(join(source, long), { recursive: true });
        writeFileSync(join(source, 'a'), first);
        writeFileSync(join(source, long, 'b'), second);
        const archive = spawnSync('tar', ['--format=ustar', '-cf', '-', 'a', `${long}/b`], {
          cwd: source,
          maxBuffer: 1e8,
        }).stdout;
        expect(fileInTar(archive, 'a').equals(first)).toBe(true);
        expect(fileInTar(archive, `${long}/b`).equals(second)).toBe(true);
        expect(() => fileInTar(archive, 'c')).toThrow(/has no c/);
        expect(() => fileInTar(archive.subarray(0, 700), `${long}/b`)).toThrow();
      }),
      { numRuns: 20 },
    );
  });
});

describe('the addon', () => {
  const headers = join(root, 'addon', '.headers');

  it.skipIf(!existsSync(headers))(
    'is built once, and again only when a source has changed or the build was cut off',
    () => {
      const clone = bareClone();
      cpSync(headers, join(clone, 'addon', '.headers'), { recursive: true });
      symlinkSync(join(root, 'node_modules'), join(clone, 'node_modules'));
      mkdirSync(join(clone, 'addon', 'src'));
      writeFileSync(join(clone, 'addon', 'src', 'a.cpp'), '// one');
      const calls = join(folder, 'calls');
      const product = join(clone, 'addon', 'build', 'Release', 'modelfactory.node');
      // A stand-in that does what CMake does, as far as it matters here.
      const bin = pathWith({ 'c++': 'c++ 12', git: 'git version 2.39.5', cmake: 'cmake version 3.25.1' });
      writeFileSync(
        join(bin, 'cmake'),
        `#!/bin/sh\n[ "$1" = --version ] && echo 'cmake version 3.25.1' && exit\necho "$1" >> '${calls}'\nif [ "$1" = --build ]; then [ -e '${folder}/broken' ] && exit 1; mkdir -p '${join(product, '..')}'; : > '${product}'; fi\n`,
      );
      const build = () => {
        writeFileSync(calls, '');
        const { status } = node(clone, ['bin/native.mjs'], { PATH: `${bin}:/usr/bin:/bin` });
        return { status, calls: readFileSync(calls, 'utf8').trim().split('\n').filter(Boolean) };
      };
      expect(build()).toEqual({ status: 0, calls: ['-S', '--build'] });
      expect(build()).toEqual({ status: 0, calls: [] });
      writeFileSync(join(clone, 'addon', 'src', 'a.cpp'), '// another');
      writeFileSync(join(folder, 'broken'), '');
      expect(build()).toMatchObject({ status: 1 });
      rmSync(join(folder, 'broken'));
      expect(build()).toEqual({ status: 0, calls: ['-S', '--build'] });
      expect(build()).toEqual({ status: 0, calls: [] });
    },
  );
});

describe('dependencies', () => {
  const write = (path: string, packages: object) => {
    mkdirSync(join(folder, 'node_modules'), { recursive: true });
    writeFileSync(join(folder, path), JSON.stringify({ packages }));
  };
  async function installed(withDev: boolean, wanted: object, there: object): Promise<boolean> {
    const { isInstalled } = (await load('bootstrap.mjs')) as unknown as {
      isInstalled(withDev: boolean, folder: string): boolean;
    };
    write('package-lock.json', { '': {}, ...wanted });
    write('node_modules/.package-lock.json', there);
    return isInstalled(withDev, folder);
  }
  const a = { version: '1.0.0', integrity: 'sha512-a' };

  it('count as installed when every one has the version and the hash of the lockfile', async () => {
    expect(await installed(true, { 'node_modules/a': a }, { 'node_modules/a': a })).toBe(true);
    expect(await installed(true, { 'node_modules/a': { ...a, version: '1.0.1' } }, { 'node_modules/a': a })).toBe(
      false,
    );
    expect(await installed(true, { 'node_modules/a': { ...a, integrity: 'sha512-b' } }, { 'node_modules/a': a })).toBe(
      false,
    );
    expect(await installed(true, { 'node_modules/a': a }, {})).toBe(false);
  });

  it('may lack what is for other platforms, and for tests where nobody tests', async () => {
    expect(await installed(true, { 'node_modules/a': { ...a, optional: true } }, {})).toBe(true);
    expect(await installed(false, { 'node_modules/a': { ...a, dev: true } }, {})).toBe(true);
    expect(await installed(true, { 'node_modules/a': { ...a, dev: true } }, {})).toBe(false);
  });

  it('may be more than the lockfile asks for: a CUDA package added by hand stays', async () => {
    expect(await installed(true, {}, { 'node_modules/a': a })).toBe(true);
  });
});

describe('versions', () => {
  it('are compared number by number', async () => {
    const { isAtLeast, parseVersion } = (await load('setup/requirements.mjs')) as unknown as {
      isAtLeast(version: number[], minimum: number[]): boolean;
      parseVersion(text: string): number[] | null;
    };
    expect(parseVersion('cmake version 3.25.1')).toEqual([3, 25, 1]);
    expect(parseVersion('Python 3.11')).toEqual([3, 11, 0]);
    expect(parseVersion('none')).toBeNull();
    expect(isAtLeast([20, 9, 0], [20, 17, 0])).toBe(false);
    expect(isAtLeast([20, 17, 0], [20, 17, 0])).toBe(true);
    expect(isAtLeast([22, 0, 0], [20, 17, 0])).toBe(true);
  });
});

#!/usr/bin/env node
import { spawnSync } from 'node:child_process';
/**
 * `npm run check [-- --fix]`: format and lint (biome), types (tsc), C++ format (clang-format, where it is installed).
 * Needs node_modules; every check runs, also after one has failed.
 */
import { existsSync, readdirSync } from 'node:fs';
import { join, relative } from 'node:path';
import { bootstrap } from './bootstrap.mjs';
import { root } from './setup/paths.mjs';
import { parseVersion } from './setup/requirements.mjs';
import { capture, main, say } from './setup/run.mjs';

/** Runs all checks. Returns one result each: name, and `passed`, `failed` or `skipped`. */
export function runChecks({ fix = false } = {}) {
  return [biome(fix), types(), cxxFormat(fix)];
}

function biome(fix) {
  const args = ['check', '--error-on-warnings', '--max-diagnostics=60', ...(fix ? ['--write'] : []), '.'];
  return execute('biome (format and lint)', process.execPath, [binOf('@biomejs/biome/bin/biome'), ...args]);
}

function types() {
  return execute('tsc (types)', process.execPath, [binOf('typescript/bin/tsc'), '-p', '.']);
}

/** Versions of clang-format break lines differently: only the one that the sources were formatted with can judge them. */
const CLANG_FORMAT_MAJOR = 14;

function cxxFormat(fix) {
  const name = 'clang-format (C++)';
  const command = [`clang-format-${CLANG_FORMAT_MAJOR}`, 'clang-format'].find(
    (candidate) => parseVersion(capture(candidate, ['--version']))?.[0] === CLANG_FORMAT_MAJOR,
  );
  if (!command) return skip(name, `clang-format ${CLANG_FORMAT_MAJOR} is not installed`);
  const files = ['addon/src', 'addon/tools', 'test/addon/children'].flatMap((folder) => cxxFiles(join(root, folder)));
  if (files.length === 0) return skip(name, 'there is no C++ here');
  if (fix) return execute(name, command, ['-i', ...files]);
  const wrong = files.filter(
    (file) => spawnSync(command, ['--dry-run', '-Werror', file], { stdio: 'ignore' }).status !== 0,
  );
  for (const file of wrong) say(`${relative(root, file)} is not formatted; \`npm run check -- --fix\` formats it.`);
  return report(name, wrong.length === 0);
}

function execute(name, command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: ['ignore', 2, 2] });
  if (error) say(`${name}: ${error.message}`);
  return report(name, status === 0);
}

function report(name, isGood) {
  say(`${isGood ? 'ok    ' : 'FAILED'} ${name}`);
  return { name, state: isGood ? 'passed' : 'failed' };
}

function skip(name, why) {
  say(`skip   ${name}: ${why}`);
  return { name, state: 'skipped' };
}

function binOf(path) {
  return join(root, 'node_modules', ...path.split('/'));
}

function cxxFiles(folder) {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile() && /\.(cpp|hpp|h)$/.test(entry.name))
    .map((entry) => join(entry.parentPath ?? entry.path, entry.name));
}

if (process.argv[1] && import.meta.filename === process.argv[1]) {
  await main(async () => {
    await bootstrap({ withDev: true, addon: false });
    const results = runChecks({ fix: process.argv.includes('--fix') });
    return results.some(({ state }) => state === 'failed') ? 1 : 0;
  });
}

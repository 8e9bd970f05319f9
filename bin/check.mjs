#!/usr/bin/env node
import { spawnSync } from 'node:child_process';
/**
 * `npm run check [-- --fix]`: format and lint (biome), types (tsc), C++ format (clang-format, where it is installed).
 * Needs node_modules; every check runs, also after one has failed.
 */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { bootstrap } from './bootstrap.mjs';
import { root } from './setup/paths.mjs';
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

function cxxFormat(fix) {
  const name = 'clang-format (C++)';
  const files = cxxFiles(join(root, 'addon', 'src'));
  if (!capture('clang-format', ['--version'])) return skip(name, 'clang-format is not installed');
  if (files.length === 0) return skip(name, 'there is no C++ here');
  return execute(name, 'clang-format', [...(fix ? ['-i'] : ['--dry-run', '-Werror']), ...files]);
}

function execute(name, command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: ['ignore', 2, 2] });
  if (error) say(`${name}: ${error.message}`);
  const state = status === 0 ? 'passed' : 'failed';
  say(`${state === 'passed' ? 'ok    ' : 'FAILED'} ${name}`);
  return { name, state };
}

function skip(name, why) {
  say(`skip   ${name}: ${why}`);
  return { name, state: 'skipped' };
}

function binOf(path) {
  return join(root, 'node_modules', ...path.split('/'));
}

function cxxFiles(folder) {
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

#!/usr/bin/env node
/**
 * `npm test [-- VITEST ARGUMENTS]`: installs and builds what is missing, then checks, then tests. With arguments only the
 * tests they select are run, without the checks. The last line is `N passed, N failed, N skipped`.
 */
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { bootstrap } from './bootstrap.mjs';
import { root } from './setup/paths.mjs';
import { main, say } from './setup/run.mjs';

await main(async () => {
  const args = process.argv.slice(2);
  await bootstrap({ withDev: true });
  const { runChecks } = await import('./check.mjs');
  const checks = args.length === 0 ? runChecks() : [];
  const count = (state) => checks.filter((check) => check.state === state).length;
  const tests = await runTests(args);
  const failed = tests.failed + count('failed');
  console.log(
    `${tests.passed + count('passed')} passed, ${failed} failed, ${tests.skipped + count('skipped')} skipped`,
  );
  return failed === 0 && tests.code === 0 ? 0 : 1;
});

async function runTests(args) {
  const folder = mkdtempSync(join(tmpdir(), 'modelfactory-test-'));
  const report = join(folder, 'report.json');
  try {
    const vitest = join(root, 'node_modules', 'vitest', 'vitest.mjs');
    const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${report}`];
    const code = await new Promise((done, fail) => {
      const child = spawn(process.execPath, [vitest, 'run', ...reporters, ...args], { cwd: root, stdio: 'inherit' });
      child.on('error', fail);
      child.on('close', (exitCode) => done(exitCode ?? 1));
    });
    return { code, ...readReport(report, code) };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** A file that failed before its first test, and an error outside all tests, count as a failure each. */
function readReport(path, code) {
  try {
    const report = JSON.parse(readFileSync(path, 'utf8'));
    const broken = report.testResults.filter(
      (file) => file.status === 'failed' && file.assertionResults.length === 0,
    ).length;
    const failed = report.numFailedTests + broken;
    return {
      passed: report.numPassedTests,
      failed: failed === 0 && code !== 0 ? 1 : failed,
      skipped: report.numPendingTests + report.numTodoTests,
    };
  } catch {
    say('The test run ended without a report.');
    return { passed: 0, failed: 1, skipped: 0 };
  }
}

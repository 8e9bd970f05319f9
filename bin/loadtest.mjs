#!/usr/bin/env node
/**
 * `npm run loadtest [-- SCRIPT] [-- K6 OPTIONS]`: runs loadtest/SCRIPT.js (default: smoke) with k6 against a running server.
 * k6 is taken from PATH, or built once into loadtest/.bin with Go. Plain Node built-ins.
 */
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { dataDir, root } from './setup/paths.mjs';
import { hintFor } from './setup/requirements.mjs';
import { capture, main, run, SetupError, say } from './setup/run.mjs';

const K6_VERSION = 'v1.8.1';
const folder = join(root, 'loadtest');

await main(async () => {
  const args = process.argv.slice(2);
  const isNamed = args.length > 0 && !args[0].startsWith('-');
  const script = scriptPath(isNamed ? args[0] : 'smoke');
  const options = (isNamed ? args.slice(1) : args).filter((arg) => arg !== '--');
  const env = {
    // Where and with which key, for the scripts; in the environment, since a command line is there for all to see.
    MODELFACTORY_URL: `http://${process.env.HOST || '127.0.0.1'}:${process.env.PORT || 8787}`,
    K6_NO_USAGE_REPORT: 'true',
    ...process.env,
    MODELFACTORY_KEY: process.env.MODELFACTORY_KEY || adminKey(),
  };
  const k6 = await findK6();
  const child = spawn(k6, ['run', ...options, script], { cwd: root, stdio: 'inherit', env });
  return await new Promise((done, fail) => {
    child.on('error', fail);
    child.on('close', (code, signal) => done(code ?? (signal === 'SIGINT' ? 130 : 1)));
  });
});

/** The scripts are those with options for k6; the other files are what they share. */
function scriptPath(name) {
  const scripts = readdirSync(folder).filter(
    (file) => file.endsWith('.js') && /export const options\b/.test(readFileSync(join(folder, file), 'utf8')),
  );
  const file = `${name.replace(/\.js$/, '')}.js`;
  if (!scripts.includes(file)) {
    throw new SetupError(
      `There is no load test "${name}". There are: ${scripts.map((one) => one.replace(/\.js$/, '')).join(', ')}.`,
    );
  }
  return join(folder, file);
}

function adminKey() {
  const path = join(dataDir(), 'admin.key');
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    throw new SetupError(
      `There is no key: MODELFACTORY_KEY is not set and ${path} cannot be read. Start the server first: npm start`,
    );
  }
}

async function findK6() {
  if (capture('k6', ['version'])) return 'k6';
  const bin = join(folder, '.bin');
  const built = join(bin, process.platform === 'win32' ? 'k6.exe' : 'k6');
  if (existsSync(built) && capture(built, ['version'])) return built;
  if (!capture('go', ['version'])) {
    throw new SetupError(`k6 is not installed, and neither is Go to build it with. Get one of them: ${hintFor('go')}.`);
  }
  mkdirSync(bin, { recursive: true });
  say(`Building k6 ${K6_VERSION} with Go (once, some minutes) …`);
  await run('go', ['install', `go.k6.io/k6@${K6_VERSION}`], {
    cwd: folder,
    env: { ...process.env, GOBIN: bin, CGO_ENABLED: '0' },
    quiet: true,
    what: 'Building k6',
  });
  return built;
}

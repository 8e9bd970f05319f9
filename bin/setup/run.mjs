/** Child processes for the set-up. Plain built-ins. */
import { spawn, spawnSync } from 'node:child_process';

/** An error whose message is written for the person at the terminal; printed without a stack. */
export class SetupError extends Error {
  constructor(message) {
    super(message);
    this.name = 'SetupError';
  }
}

const isWindows = process.platform === 'win32';

/** npm without guessing: under `npm run` the very npm that started us, else the one on PATH. */
export function npmCommand(args) {
  const cli = process.env.npm_execpath;
  if (cli && /npm-cli\.[cm]?js$/.test(cli)) return [process.execPath, [cli, ...args]];
  return ['npm', args];
}

/**
 * Runs a command and waits. Its output goes to our stderr (stdout stays free for results), or, with `quiet`, is shown
 * only if the command fails.
 */
export function run(command, args, options = {}) {
  const { quiet = false, what = command, ...spawnOptions } = options;
  return new Promise((done, fail) => {
    const child = spawn(command, args, {
      stdio: quiet ? ['ignore', 'pipe', 'pipe'] : ['ignore', 2, 2],
      // npm is a .cmd file on Windows, and those only start through a shell.
      shell: isWindows && command === 'npm',
      ...spawnOptions,
    });
    const output = [];
    child.stdout?.on('data', (chunk) => output.push(chunk));
    child.stderr?.on('data', (chunk) => output.push(chunk));
    child.on('error', (error) => {
      const why = error.code === 'ENOENT' ? `the command "${command}" was not found` : error.message;
      fail(new SetupError(`${what} did not start: ${why}.`));
    });
    child.on('close', (code, signal) => {
      if (code === 0) return done();
      if (quiet) process.stderr.write(Buffer.concat(output));
      fail(new SetupError(`${what} failed (${signal ?? `exit code ${code}`}); see its output above.`));
    });
  });
}

/** Standard output of a command, trimmed, or null if it is missing or fails. For short questions such as `--version`. */
export function capture(command, args, options = {}) {
  const result = spawnSync(command, args, {
    encoding: 'utf8',
    timeout: 20_000,
    stdio: ['ignore', 'pipe', 'pipe'],
    ...options,
  });
  if (result.error || result.status !== 0) return null;
  return result.stdout.trim();
}

/** Prints what a set-up step says, one line, so that it cannot be mixed up with a program's output on stdout. */
export function say(line) {
  process.stderr.write(`${line}\n`);
}

/** Runs a program's main function; known errors become one sentence, exit code 1. */
export async function main(body) {
  try {
    const code = await body();
    if (typeof code === 'number') process.exitCode = code;
  } catch (error) {
    if (error instanceof SetupError || error?.name === 'FetchError') say(`error: ${error.message}`);
    else console.error(error);
    process.exitCode = 1;
  }
}

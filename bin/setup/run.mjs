/** Child processes for the set-up. Plain built-ins. */
import { spawn, spawnSync } from 'node:child_process';
import { fileProblem } from './file-problem.mjs';

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
    const waiting = quiet ? showWaiting(what) : null;
    for (const stream of [child.stdout, child.stderr])
      stream?.on('data', (chunk) => {
        output.push(chunk);
        waiting?.heard(chunk.toString('latin1'));
      });
    child.on('error', (error) => {
      waiting?.end();
      const why = error.code === 'ENOENT' ? `the command "${command}" was not found` : error.message;
      fail(new SetupError(`${what} did not start: ${why}.`));
    });
    child.on('close', (code, signal) => {
      waiting?.end();
      if (code === 0) return done();
      if (quiet) process.stderr.write(Buffer.concat(output));
      fail(new SetupError(`${what} failed (${signal ?? `exit code ${code}`}); see its output above.`));
    });
  });
}

/**
 * On a terminal, a line that says how long a silent command has run, and for builds how far it is and how long it will take.
 * @param now milliseconds, for tests.
 */
export function showWaiting(what, stream = process.stderr, now = Date.now) {
  if (!stream.isTTY) return null;
  const startedAt = now();
  let share = 0;
  let isShown = false;
  const timer = setInterval(() => {
    stream.write(
      `\r\u001b[2K${waitingLine(what, (now() - startedAt) / 1000, share).slice(0, (stream.columns || 80) - 1)}`,
    );
    isShown = true;
  }, 1_000);
  timer.unref();
  return {
    heard: (text) => {
      share = shareOf(text) ?? share;
    },
    end: () => {
      clearInterval(timer);
      if (isShown) stream.write('\r\u001b[2K');
    },
  };
}

/** `Compiling the addon: 42 %, 31 s, about 43 s left` */
export function waitingLine(what, seconds, share) {
  const elapsed = `${Math.round(seconds)} s`;
  if (share <= 0) return `${what}: ${elapsed}`;
  return `${what}: ${Math.floor(share * 100)} %, ${elapsed}, about ${Math.ceil((seconds * (1 - share)) / share)} s left`;
}

/** The last `[12/40]` (Ninja) or `[ 42%]` (make) of a build's output, as a share from 0 to 1; null where there is none. */
export function shareOf(text) {
  const last = [...text.matchAll(/^\[ *(\d+)(?:\/(\d+)|%)\]/gm)].at(-1);
  if (last === undefined) return null;
  const total = Number(last[2] ?? 100);
  return total > 0 ? Math.min(1, Number(last[1]) / total) : null;
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
    const problem = fileProblem(error);
    if (error instanceof SetupError || error?.name === 'FetchError') say(`error: ${error.message}`);
    else if (problem !== null) say(`error: ${problem}`);
    else console.error(error);
    process.exitCode = 1;
  }
}

/** The frame of the command line: help everywhere, mistakes answered with a sentence, output that fits its terminal. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { duration, liveLine } from '../../bin/cli/live.ts';
import { count, size, table } from '../../bin/cli/output.ts';
import { createProgram, runCli } from '../../bin/cli/program.ts';
import { leavesOf } from '../../bin/cli-doc.ts';
import { progressPrinter } from '../../daemon/models/progress.ts';

const root = join(import.meta.dirname, '..', '..');
let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'cli-frame-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function cli(...args: string[]): Promise<{ code: number; out: string; notes: string }> {
  const out: string[] = [];
  const notes: string[] = [];
  // Nobody listens there: what is refused here is refused before anything is sent.
  const env = { MODELFACTORY_URL: 'http://127.0.0.1:9', MODELFACTORY_KEY: 'mf-x' };
  const code = await runCli(args, { out: (line) => out.push(line), note: (line) => notes.push(line) }, env);
  return { code, out: out.join('\n'), notes: notes.join('\n') };
}

describe('mistakes', () => {
  it.each([
    [['keys', 'create', '--nam', 'x'], /unknown option '--nam'\n\(Did you mean --name\?\)/],
    [['adapter', 'list'], /unknown command 'adapter'\n\(Did you mean adapters\?\)/],
    [['train', 'x.jsonl', '--alpha', 'much'], /'much' is invalid. Give a number/],
    [['train', 'x.jsonl', '--lr', ''], /Give a number/],
    [['models', 'add', './nowhere.gguf'], /^error: There is no file \.\/nowhere\.gguf, and no built-in model/],
    [['models', 'quantize', './nowhere.gguf', '--type', 'q8_0'], /^error: There is no file \.\/nowhere\.gguf/],
    [['models', 'quantize', 'x.gguf', '--type', 'q9'], /There is no type q9/],
    [['evaluate', 'nowhere.jsonl', '--model', 'm'], /There is no file nowhere.jsonl/],
    [['jobs', 'list'], /No modelfactory answers at http:\/\/127.0.0.1:9 .*npm start/],
  ])('%j', async (args, sentence) => {
    const answer = await cli(...args);
    expect(answer.code).toBe(1);
    expect(answer.out).toBe('');
    expect(answer.notes).toMatch(sentence);
    expect(answer.notes).not.toMatch(/MODELFACTORY_BASE is|\n {4}at /);
  });

  it('every command answers --help with its usage and exit code 0, also beside what is wrong', async () => {
    const program = createProgram({ output: { out: () => {}, note: () => {} } } as never);
    const leaves = leavesOf(program);
    expect(leaves.length).toBeGreaterThan(50);
    for (const leaf of leaves) {
      const path: string[] = [];
      for (let one = leaf; one.parent; one = one.parent) path.unshift(one.name());
      const answer = await cli(...path, '--nonsense', '--help');
      expect(answer, path.join(' ')).toMatchObject({ code: 0, notes: '' });
      expect(answer.out).toMatch(new RegExp(`^Usage: modelfactory ${path.join(' ')}`));
    }
  });

  it('doctor tells its options, and refuses others', () => {
    const doctor = (...args: string[]) =>
      spawnSync(process.execPath, [join(root, 'bin', 'modelfactory.mjs'), 'doctor', ...args], { encoding: 'utf8' });
    expect(doctor('--help')).toMatchObject({ status: 0, stdout: expect.stringMatching(/^Usage: .*--json/s) });
    expect(doctor('--jsn')).toMatchObject({
      status: 1,
      stderr: "error: unknown option '--jsn'. There are --json and --help.\n",
    });
  });
});

describe('what is printed', () => {
  const rows = [
    ['key_1', 'first'],
    ['key_22', 'second'],
  ];
  it('is a table where it fits, and a block of lines a row where it would wrap', () => {
    expect(table(['ID', 'NAME'], rows, '', 14)).toBe('ID      NAME\nkey_1   first\nkey_22  second');
    expect(table(['ID', 'NAME'], rows, '', 13)).toBe('ID    key_1\nNAME  first\n\nID    key_22\nNAME  second');
  });
  it('is aligned by the cells of a terminal, not by code units', () => {
    const lines = table(
      ['A', 'B'],
      [
        ['港口', 'x'],
        ['e\u0301e', 'y'],
        ['🚢', 'z'],
      ],
      '',
      80,
    ).split('\n');
    expect(lines).toEqual(['A     B', '港口  x', 'e\u0301e    y', '🚢    z']);
  });
  it('counts and measures as people do', () => {
    expect([count(1, 'row'), count(2, 'row'), count(0, 'row is', 'rows are')]).toEqual([
      '1 row',
      '2 rows',
      '0 rows are',
    ]);
    expect([size(512), size(4_900), size(97.4e6), size(2.1e9)]).toEqual(['512 B', '4.9 kB', '97.4 MB', '2.1 GB']);
    expect([duration(59.6), duration(3_661)]).toEqual(['1 min 0 s', '1 h 1 min']);
  });
});

describe('long work', () => {
  function stream(isTTY: boolean, columns: number) {
    const written: string[] = [];
    return { written, isTTY, columns, write: (text: string) => written.push(text) };
  }

  it('never writes a line that wraps: what wraps cannot be written over', () => {
    const narrow = stream(true, 30);
    const line = liveLine(narrow, () => {});
    line.show('x'.repeat(100));
    let now = 0;
    const bar = progressPrinter(narrow, () => now);
    for (const doneBytes of [0, 4e7, 1e8]) {
      now += 1_000;
      bar.show({ label: 'smollm2-135m-instruct', doneBytes, totalBytes: 1e8 });
    }
    expect(narrow.written).toHaveLength(4);
    // biome-ignore lint/suspicious/noControlCharactersInRegex: how a line is begun anew.
    for (const text of narrow.written) expect(text.replace(/\r\u001b\[2K|\n/g, '').length).toBeLessThan(30);
  });

  it('gives up the bar before the figures', () => {
    const narrow = stream(true, 60);
    progressPrinter(narrow).show({ label: 'a-model-of-some-length', doneBytes: 5e7, totalBytes: 1e8 });
    expect(narrow.written.join('')).toContain('a-model-of-some-length 50 %  50.0/100.0 MB');
  });

  it('is told now and then where there is no terminal, small work not at all', () => {
    const notes: string[] = [];
    let now = 0;
    const line = liveLine(stream(false, 80), (text) => notes.push(text), { everyMs: 5_000, now: () => now });
    for (; now < 11_000; now += 1_000) line.show(`at ${now}`);
    expect(notes).toEqual(['at 0', 'at 5000', 'at 10000']);
    const log = stream(false, 80);
    progressPrinter(log, () => 7).show({ label: 'm', doneBytes: 1, totalBytes: 10 });
    expect(log.written).toEqual([]);
  });

  it('of the set-up says how far a build is', async () => {
    const { shareOf, waitingLine } = (await import(pathToFileURL(join(root, 'bin/setup/run.mjs')).href)) as {
      shareOf: (text: string) => number | null;
      waitingLine: (what: string, seconds: number, share: number) => string;
    };
    expect(shareOf('[1/40] Building CXX\n[10/40] Building CXX\n')).toBe(0.25);
    expect(shareOf('[  5%] Building\n[ 42%] Building\n')).toBe(0.42);
    expect(shareOf('-- The CXX compiler')).toBeNull();
    expect(waitingLine('npm ci', 12.3, 0)).toBe('npm ci: 12 s');
    expect(waitingLine('Compiling', 30, 0.25)).toBe('Compiling: 25 %, 30 s, about 90 s left');
  });
});

describe('folders that cannot be used', () => {
  it('a data folder that is a file: one sentence that names it and the setting', () => {
    const file = join(folder, 'file');
    writeFileSync(file, '');
    const script = `import { start } from ${JSON.stringify(join(root, 'bin/supervisor/main.ts'))}; process.exitCode = await start();`;
    const started = spawnSync(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], {
      encoding: 'utf8',
      cwd: root,
      env: { ...process.env, MODELFACTORY_DATA: join(file, 'below'), PORT: '9' },
    });
    expect(started.status).toBe(1);
    expect(started.stderr).toMatch(/^error: The data folder cannot be used: .*below.*\. Set MODELFACTORY_DATA/);
    expect(started.stderr.trim().split('\n')).toHaveLength(1);
  });

  it('what a file system refuses is a sentence; other errors are none', async () => {
    const { fileProblem } = await import('../../bin/setup/file-problem.mjs');
    const refused = Object.assign(new Error('x'), { code: 'EACCES', path: '/a/b', syscall: 'open' });
    expect(fileProblem(refused)).toMatch(
      /^\/a\/b may not be read or written by you; .*MODELFACTORY_DATA.* \(EACCES\)\.$/,
    );
    expect(fileProblem(new TypeError('x'))).toBeNull();
    expect(
      fileProblem(Object.assign(new Error('x'), { code: 'ENOENT', path: 'git', syscall: 'spawn git' })),
    ).toBeNull();
  });
});

it('a machine without the tools is told all of them and how to get each', () => {
  const script = `import(${JSON.stringify(pathToFileURL(join(root, 'bin/setup/requirements.mjs')).href)}).then(({ requireTools }) => requireTools(['compiler', 'cmake', 'git'])).catch((error) => console.log(error.message));`;
  const said = execFileSync(process.execPath, ['-e', script], { encoding: 'utf8', env: { PATH: folder } });
  expect(said.match(/Get it with: \S+/g)).toHaveLength(3);
});

/** What the documents say of files, settings and commands is what there is. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { describe, expect, it } from 'vitest';
import { cliDoc } from '../../bin/cli-doc.ts';

const root = join(import.meta.dirname, '..', '..');
const SKIPPED = new Set([
  'node_modules',
  'data',
  'build',
  'build-asan',
  '.headers',
  '.cache',
  '.git',
  'results',
  'coverage',
  '.bin',
]);

function files(folder: string, ending: RegExp): string[] {
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) return SKIPPED.has(entry.name) || entry.name.startsWith('.') ? [] : files(path, ending);
    return ending.test(entry.name) ? [path] : [];
  });
}
const read = (path: string) => readFileSync(join(root, path), 'utf8');
const documents = [
  'README.md',
  ...['docs', 'gateway', 'daemon', 'addon', 'bin', 'loadtest'].flatMap((one) => files(one, /\.md$/)),
];
const operating = read('docs/operating.md');

/** Of tests, benchmarks and the parts of the product among themselves; nobody sets them to run it. */
const INTERNAL = new Set([
  'MODELFACTORY_SUPERVISOR_STATE',
  'MODELFACTORY_LIBS_VERSION',
  'MODELFACTORY_HEADERS',
  'MODELFACTORY_LIBS',
]);
const BENCHMARKS = /^MODELFACTORY_(PEERS|PYTHON|BENCH_DATA|SANITIZED_ADDON)$/;
const NAMES = /\b(?:MODELFACTORY|HF|PIP)_[A-Z][A-Z0-9_]*[A-Z0-9]\b/g;

function namesIn(text: string): string[] {
  return [...new Set([...text.matchAll(NAMES)].map(([name]) => name))];
}

describe('settings', () => {
  const sources = [...['bin', 'daemon', 'gateway', 'addon'].flatMap((one) => files(one, /\.(ts|mjs|js|cpp|hpp)$/))].map(
    read,
  );
  const code = sources.join('\n');
  const table = operating.slice(operating.indexOf('## Settings'), operating.indexOf('## Training'));

  it('every variable of the table is read by the code', () => {
    const documented = namesIn(table);
    expect(documented.length).toBeGreaterThan(30);
    // Quoted or as a property: a mention in a comment reads nothing.
    const isRead = (name: string) => new RegExp(`env\\.${name}\\b|['"]${name}['"]|\\b${name}:`).test(code);
    expect(documented.filter((name) => !isRead(name))).toEqual([]);
  });

  it('every variable that the code reads is in the table', () => {
    const uses = [...code.matchAll(/(?:env\.|['"])((?:MODELFACTORY|HF|PIP)_[A-Z][A-Z0-9_]*[A-Z0-9])\b/g)];
    const known = new Set(namesIn(table));
    const missing = [...new Set(uses.map(([, name]) => name as string))].filter(
      (name) => !known.has(name) && !INTERNAL.has(name) && !BENCHMARKS.test(name),
    );
    expect(missing).toEqual([]);
  });

  it('no other document names one that there is not', () => {
    const known = new Set([...namesIn(table), ...INTERNAL]);
    for (const path of documents)
      expect(
        namesIn(read(path)).filter((name) => !known.has(name) && !BENCHMARKS.test(name)),
        path,
      ).toEqual([]);
  });
});

describe('commands', () => {
  it('docs/cli.md is what bin/cli-doc.ts writes', () => {
    expect(read('docs/cli.md')).toBe(cliDoc());
  });

  it('documents and messages name commands that there are', () => {
    const known = new Set(
      [...read('docs/cli.md').matchAll(/^\| `([a-z-]+(?: [a-z-]+)*)/gm)].map(([, path]) => path as string),
    );
    const isKnown = (said: string) => [...known].some((path) => path === said || path.startsWith(`${said} `));
    for (const path of [...documents, ...files('bin/cli', /\.ts$/)]) {
      for (const [, words] of read(path).matchAll(/npx modelfactory ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)*)/g)) {
        const list = (words as string).split(' ');
        const prefixes = list.map((_, index) => list.slice(0, index + 1).join(' '));
        expect(prefixes.some((prefix) => known.has(prefix)) || isKnown(words as string), `${path}: ${words}`).toBe(
          true,
        );
      }
    }
  });
});

describe('links and paths', () => {
  it.each(documents.map((path) => [path]))('of %s lead somewhere', (path) => {
    const text = read(path);
    const links = [...text.matchAll(/\]\((?!https?:|mailto:)([^)\s]+)\)/g)].map(([, link]) => link as string);
    const broken = links.filter((link) => {
      const [file, anchor] = link.split('#') as [string, string | undefined];
      const target = file === '' ? path : join(dirname(path), file);
      if (!existsSync(join(root, target))) return true;
      return anchor !== undefined && !anchorsOf(read(target)).includes(anchor);
    });
    expect(broken).toEqual([]);
  });

  /** Code in documents that begins with a folder of the repository is a path of it. */
  it.each(documents.map((path) => [path]))('in the words of %s exist', (path) => {
    const words = [...read(path).matchAll(/`((?:gateway|daemon|addon|bin|loadtest|migrations|test|docs)\/[\w./-]+)`/g)];
    const missing = words
      .map(([, word]) => word as string)
      .filter((word) => {
        return (
          ![root, join(root, dirname(path))].some((base) => existsSync(join(base, word))) &&
          !/^addon\/(build|\.headers)/.test(word)
        );
      });
    expect(missing).toEqual([]);
  });

  it('a folder’s README can be read at once: at most 40 lines; every file and folder of its first column is there', () => {
    for (const path of documents.filter((one) => one.endsWith('README.md') && one !== 'README.md')) {
      const text = read(path);
      expect(text.trimEnd().split('\n').length, path).toBeLessThanOrEqual(40);
      for (const [, first] of text.matchAll(/^\| ([^|]*`[^|]*) \|/gm))
        for (const [, word] of (first as string).matchAll(/`([\w.-]+\.(?:ts|mjs|cpp|js|py)|[\w-]+\/)`/g)) {
          const here = dirname(path);
          const places = [here, join(here, 'src'), 'addon/src', 'daemon', 'gateway'];
          expect(
            places.some((place) => existsSync(join(root, place, word as string))),
            `${path}: ${word}`,
          ).toBe(true);
        }
    }
  });

  it('every part of the product is described', () => {
    const architecture = read('docs/architecture.md');
    for (const part of ['gateway', 'daemon'])
      for (const entry of readdirSync(join(root, part), { withFileTypes: true }))
        if (entry.isDirectory())
          expect(architecture, relative(root, join(part, entry.name))).toContain(`${entry.name}/`);
    expect(architecture.trimEnd().split('\n').length).toBeLessThanOrEqual(120);
  });
});

function anchorsOf(text: string): string[] {
  return [...text.matchAll(/^#+ (.*)$/gm)].map(([, title]) =>
    (title as string)
      .toLowerCase()
      .replace(/[^\p{L}\p{N}\s_-]/gu, '')
      .trim()
      .replaceAll(/\s/g, '-'),
  );
}

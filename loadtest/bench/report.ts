/** Tables for people, JSON for programs: what a benchmark leaves behind. */
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { commit, machine, type RunInfo } from './machine.ts';
import type { Summary } from './stats.ts';

export interface Check {
  name: string;
  value: number;
  /** What the value must be. */
  target: { op: '>=' | '<='; value: number };
  unit?: string;
}

export interface Table {
  title: string;
  columns: string[];
  rows: string[][];
}

export interface Report {
  name: string;
  tables: Table[];
  checks: Check[];
  /** Sentences a reader needs: what was skipped, what the numbers leave out. */
  notes: string[];
  /** Everything that was measured, round by round. */
  data: unknown;
  /** Pictures for the page: name → SVG. */
  charts?: Record<string, string>;
}

export const projectFolder = fileURLToPath(new URL('../../', import.meta.url));

export function number(x: number, digits = 3): string {
  if (!Number.isFinite(x)) return '–';
  if (x !== 0 && Math.abs(x) < 0.001) return x.toExponential(1);
  return Math.abs(x) >= 100 ? x.toFixed(0) : String(Number(x.toPrecision(digits)));
}

/** "median (min–max)". */
export const spread = (s: Summary, digits = 3): string =>
  `${number(s.median, digits)} (${number(s.min, digits)}–${number(s.max, digits)})`;

export function holds(check: Check): boolean {
  return check.target.op === '>=' ? check.value >= check.target.value : check.value <= check.target.value;
}

/** A check whose value could not be measured is neither met nor missed. */
export function mark(check: Check): string {
  if (!Number.isFinite(check.value)) return 'not measured';
  return holds(check) ? '✓' : '✗';
}

const checkTable = (checks: Check[]): Table => ({
  title: 'Targets',
  columns: ['what', 'value', 'target', ''],
  rows: checks.map((c) => [
    c.name,
    `${number(c.value)}${c.unit ? ` ${c.unit}` : ''}`,
    `${c.target.op === '>=' ? '≥' : '≤'} ${number(c.target.value)}${c.unit ? ` ${c.unit}` : ''}`,
    mark(c),
  ]),
});

/** Plain text with aligned columns. */
export function renderText(table: Table): string {
  const all = [table.columns, ...table.rows];
  const widths = table.columns.map((_, i) => Math.max(...all.map((row) => [...(row[i] ?? '')].length)));
  const line = (row: string[]) =>
    row
      .map((cell, i) => cell + ' '.repeat((widths[i] as number) - [...cell].length))
      .join('  ')
      .trimEnd();
  return [table.title, line(table.columns), line(widths.map((w) => '─'.repeat(w))), ...table.rows.map(line)].join('\n');
}

export function renderMarkdown(table: Table): string {
  const cell = (text: string) => text.replaceAll('|', '\\|').replaceAll('\n', ' ');
  const line = (row: string[]) => `| ${row.map(cell).join(' | ')} |`;
  return [
    `### ${table.title}`,
    '',
    line(table.columns),
    `|${table.columns.map(() => '---|').join('')}`,
    ...table.rows.map(line),
  ].join('\n');
}

export function runInfo(args: readonly string[], versions: Record<string, string> = {}): RunInfo {
  return {
    machine: machine(),
    date: new Date().toISOString(),
    commit: commit(projectFolder),
    command: `npm run bench -- ${args.join(' ')}`,
    versions,
  };
}

/** Prints the report and writes `<name>-<date>.json` and `.md`. Returns the paths without extension. */
export function publish(
  report: Report,
  info: RunInfo,
  folder = path.join(projectFolder, 'loadtest', 'results'),
  print: (text: string) => void = (text) => void process.stdout.write(text),
): string {
  const tables = report.checks.length > 0 ? [...report.tables, checkTable(report.checks)] : report.tables;
  for (const table of tables) print(`\n${renderText(table)}\n`);
  for (const note of report.notes) print(`\n${note}\n`);

  mkdirSync(folder, { recursive: true });
  const stem = path.join(folder, `${report.name}-${info.date.slice(0, 16).replace('T', '-').replace(':', '')}`);
  const { charts = {}, ...facts } = report;
  writeFileSync(`${stem}.json`, `${JSON.stringify({ ...facts, info }, null, 1)}\n`);
  for (const [name, svg] of Object.entries(charts)) writeFileSync(`${stem}-${name}.svg`, svg);
  const pictures = Object.keys(charts).map((name) => `![${name}](${path.basename(stem)}-${name}.svg)`);
  const { machine: m } = info;
  const head = [
    `# ${report.name}, ${info.date.slice(0, 10)}`,
    '',
    `${m.cpu}, ${m.cores} cores (${m.flags.join(', ') || 'no special flags known'}), ${m.memoryGiB} GiB, ${m.platform}, Node ${m.node}`,
    '',
    `\`${info.command}\`, commit ${info.commit}${Object.entries(info.versions)
      .map(([k, v]) => `, ${k} ${v}`)
      .join('')}`,
  ];
  const notes = report.notes.length > 0 ? ['', ...report.notes.map((n) => `- ${n}`)] : [];
  writeFileSync(
    `${stem}.md`,
    `${[...head, '', [...tables.map(renderMarkdown), ...pictures].join('\n\n'), ...notes].join('\n')}\n`,
  );
  print(`\nwritten: ${path.relative(process.cwd(), stem)}.json and .md\n`);
  return stem;
}

/** Tables and targets of the benchmark of Datanets. */
import type { AuthorizationCosts } from './datanet-authorization.ts';
import type { DatanetOptions, Memory, Published, Samples } from './datanets.ts';
import { type Check, number, type Report, type Table } from './report.ts';
import { quantile, summarize } from './stats.ts';

const MB = 1e6;

function sampleTable(title: string, samples: Samples, unit: string, scale = 1): Table {
  const row = (name: string, values: number[]) => {
    const scaled = values.map((value) => value * scale);
    const { median, max } = summarize(scaled);
    return [name, String(values.length), number(median), number(quantile(scaled, 0.95)), number(max)];
  };
  const all = Object.values(samples).flat();
  return {
    title,
    columns: ['what', 'times', `p50 ${unit}`, `p95 ${unit}`, `max ${unit}`],
    rows: [...Object.entries(samples).map(([name, values]) => row(name, values)), row('all', all)],
  };
}

/** Tens of thousands of samples, as what of them is read again; in their own unit. */
export function quantilesOf(samples: Samples): Record<string, object> {
  const entries = Object.entries(samples).map(([name, values]) => [name, summarize(values)] as const);
  return Object.fromEntries(entries);
}

export function datanetReport(
  published: Published,
  searches: Samples,
  listings: Samples,
  measured: Memory,
  costs: AuthorizationCosts,
  options: DatanetOptions,
): Omit<Report, 'data'> {
  const { rows, bytes, seconds, refused, cpuSeconds } = published;
  const total = Object.values(seconds).reduce((sum, one) => sum + one, 0);
  const p95 = (samples: Samples) => quantile(Object.values(samples).flat(), 0.95);
  const step = (name: string, spent: number) => [name, number(spent), number(rows / spent)];
  const most = Math.max(measured.uploading, measured.reading);
  const atMost = (name: string, value: number, most: number, unit: string): Check => ({
    name,
    value,
    target: { op: '<=', value: most },
    unit,
  });
  return {
    name: 'datanets',
    tables: [
      {
        title: `${options.rows} rows (${number(bytes / MB)} MB) from upload to version`,
        columns: ['step', 'seconds', 'rows/s'],
        rows: [
          step('upload', seconds.upload),
          step('read, validate, sign, store', seconds.read),
          step('approve all', seconds.review),
          step('publish', seconds.publish),
          step('in all', total),
        ],
      },
      sampleTable(`Search in ${rows} rows`, searches, 'ms'),
      sampleTable(`Lists of ${options.catalogue} Datanets`, listings, 'ms'),
      sampleTable('Authorisation, in the process', costs, 'µs', 1000),
      {
        title: `Memory of the gateway while ${number(measured.bytes / MB)} MB come in`,
        columns: ['what', 'MB', 'seconds'],
        rows: [
          ['idle', number(measured.idle / MB), ''],
          ['uploading, above idle', number(measured.uploading / MB), number(measured.uploadSeconds)],
          ['reading, above idle', number(measured.reading / MB), number(measured.readSeconds)],
        ],
      },
    ],
    checks: [
      atMost(`${options.rows} rows, contribution to version`, total, 60, 's'),
      atMost('search, p95', p95(searches), 50, 'ms'),
      atMost(`list of ${options.catalogue} Datanets, p95`, p95(listings), 50, 'ms'),
      atMost(
        'authorisation check with Datanet, p95',
        quantile(costs['key, scope and Datanet'] ?? [], 0.95) * 1000,
        100,
        'µs',
      ),
      atMost('memory above idle, upload and reading', most / MB, 300, 'MB'),
    ],
    notes: [
      `${refused} of the rows are repetitions and were refused, as they should be. The product used ${number(cpuSeconds)} s of CPU from upload to version.`,
      'Requests go over HTTP on the same machine, one after the other; times are until the last byte. The catalogue is written into the database directly.',
      'Memory is that of the gateway and the processes it starts to read contributions; pages that several share count once.',
      measured.whole
        ? `The large file became ${measured.rows} rows.`
        : `The large file was taken back after ${options.readSeconds} s of reading.`,
    ],
  };
}

/** `npm run bench -- train`: our trainer against HF PEFT, LoRA against P-Tuning v2, what an adapter gains, and who waits for whom. */
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { Report } from '../report.ts';
import { dataFolder } from './data.ts';
import { estimate } from './estimate.ts';
import { findPython } from './job.ts';
import { loss } from './loss.ts';
import { prefix } from './prefix.ts';
import { quality } from './quality.ts';
import { type Bench, PARTS, type Part, type PartResult, prepare, type TrainBenchOptions } from './setup.ts';
import { share } from './share.ts';
import { speed } from './speed.ts';

const RUN: Record<Part, (bench: Bench) => Promise<PartResult>> = { speed, loss, prefix, quality, share, estimate };

export function parseParts(given: string | undefined): readonly Part[] {
  if (given === undefined) return PARTS;
  const parts = given.split(',').map((part) => part.trim());
  const unknown = parts.find((part) => !(PARTS as readonly string[]).includes(part));
  if (unknown !== undefined)
    throw new Error(`there is no part "${unknown}" of the benchmark; there are ${PARTS.join(', ')}`);
  return parts as Part[];
}

export async function train(
  options: TrainBenchOptions,
  log: (line: string) => void,
): Promise<{ report: Report; versions: Record<string, string> }> {
  const data = dataFolder(options.dataFolder);
  if (!existsSync(path.join(data, 'e2e-devset.csv'))) {
    throw new Error(
      `the E2E data is not in ${data}: put e2e-devset.csv and e2e-testset_w_refs.csv (E2E NLG Challenge) into a folder and name it with --data or MODELFACTORY_BENCH_DATA`,
    );
  }
  const wantsPeer = options.only.some((part) => part === 'speed' || part === 'loss' || part === 'prefix');
  const python = wantsPeer ? findPython(options.python) : { sentence: '', versions: {} };
  const folder = mkdtempSync(path.join(os.tmpdir(), 'bench-train-'));
  const results: [Part, PartResult][] = [];
  try {
    const bench = prepare(options, data, folder, python, log);
    for (const part of options.only) results.push([part, await RUN[part](bench)]);
    bench.vocabulary.close();
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
  const all = results.map(([, result]) => result);
  return {
    report: {
      name: 'train',
      tables: all.flatMap((result) => result.tables),
      checks: all.flatMap((result) => result.checks),
      notes: [...(python.sentence === '' ? [] : [python.sentence]), ...all.flatMap((result) => result.notes)],
      charts: Object.assign({}, ...all.map((result) => result.charts)) as Record<string, string>,
      data: {
        options: {
          ...options,
          modelPath: path.basename(options.modelPath),
          python: undefined,
          dataFolder: undefined,
        },
        ...Object.fromEntries(results.map(([part, result]) => [part, result.data])),
      },
    },
    versions: python.versions,
  };
}

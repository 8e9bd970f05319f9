/** `npm run bench -- serve|quality|swap|gateway|ledger|datanets|train`: measures, prints a table, writes loadtest/results/. */
import { existsSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { projectFolder, publish, type Report, runInfo } from './report.ts';

const USAGE = `npm run bench -- NAME [options]
  serve     tokens per second and time to the first token against llama-server, then quality
  quality   logits and greedy continuations against libllama, default and exact mode
  swap      how long an adapter takes into a slot, and what running streams notice of it
  gateway   latency that the gateway adds, against Portkey
  ledger    receipts per second made durable, against plain rows
  datanets  100,000 rows from upload to version, search, lists, memory, cost of permission
  train     training against HF PEFT, LoRA against P-Tuning v2, what an adapter gains, chat while training
options:
  --model FILE    GGUF of the base model (default: MODELFACTORY_BASE, else the default model in the data folder)
  --rounds N      rounds of each scenario
  --quick         a tiny run that proves the code, not a measurement
  --only PARTS    train: some of speed,loss,prefix,quality,share; serve: speed
  --adapter PATH  serve, quality: a PEFT folder or a GGUF LoRA to be compared, too; may be given again
  --python FILE   train: a Python with torch, transformers, peft and gguf (default: MODELFACTORY_PYTHON, else python3)
  --data FOLDER   train: the E2E data (default: MODELFACTORY_BENCH_DATA)
Peers are looked for in the folder that MODELFACTORY_PEERS names.`;

const DEFAULT_MODEL = 'SmolLM2-135M-Instruct.Q4_1.gguf';

function modelPath(given: string | undefined): string {
  const data = process.env.MODELFACTORY_DATA ?? path.join(projectFolder, 'data');
  const candidates = [given, process.env.MODELFACTORY_BASE, path.join(data, 'models', DEFAULT_MODEL)].filter(
    (c) => c !== undefined && c !== '',
  );
  const found = (candidates as string[]).find((c) => existsSync(c));
  if (!found)
    throw new Error(
      `no base model: tried ${candidates.join(', ')}. Run npm start once to fetch it, or name one with --model`,
    );
  return path.resolve(found);
}

interface Outcome {
  report: Report;
  versions: Record<string, string>;
}

async function measureQuality(
  values: { quick: boolean; model?: string; adapter?: string[] },
  log: (line: string) => void,
): Promise<Outcome> {
  const { quality, QUALITY_DEFAULTS } = await import('./quality.ts');
  const quick = values.quick ? { prompts: 3, float32Prompts: 1, greedyTokens: 8, costRounds: 1 } : {};
  const adapters = values.adapter ?? [];
  return await quality({ ...QUALITY_DEFAULTS, ...quick, adapters, modelPath: modelPath(values.model) }, log);
}

/** One report of both, under the name of the first. */
function joined(first: Outcome, second: Outcome): Outcome {
  const [a, b] = [first.report, second.report];
  return {
    report: {
      name: a.name,
      tables: [...a.tables, ...b.tables],
      checks: [...a.checks, ...b.checks],
      notes: [...a.notes, ...b.notes],
      data: { [a.name]: a.data, [b.name]: b.data },
    },
    versions: { ...first.versions, ...second.versions },
  };
}

async function run(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      model: { type: 'string' },
      rounds: { type: 'string' },
      quick: { type: 'boolean', default: false },
      only: { type: 'string' },
      adapter: { type: 'string', multiple: true },
      python: { type: 'string' },
      data: { type: 'string' },
      help: { type: 'boolean', default: false },
    },
  });
  const name = positionals[0];
  if (values.help || name === undefined) {
    process.stdout.write(`${USAGE}\n`);
    return;
  }
  const rounds = values.rounds === undefined ? undefined : Number(values.rounds);
  if (rounds !== undefined && !(Number.isInteger(rounds) && rounds > 0))
    throw new Error('--rounds wants a positive integer');
  const log = (line: string) => process.stdout.write(`${line}\n`);
  let outcome: Outcome;
  switch (name) {
    case 'serve': {
      const { serve, SERVE_DEFAULTS } = await import('./serve.ts');
      const quick = values.quick ? { rounds: 1, outputTokens: 8, promptWords: 16 } : {};
      if (values.only !== undefined && values.only !== 'speed')
        throw new Error('serve takes --only speed; the other part alone is `quality`');
      const speed = await serve(
        { ...SERVE_DEFAULTS, ...quick, ...(rounds ? { rounds } : {}), modelPath: modelPath(values.model) },
        log,
      );
      outcome = values.only === 'speed' ? speed : joined(speed, await measureQuality(values, log));
      break;
    }
    case 'quality':
      outcome = await measureQuality(values, log);
      break;
    case 'swap': {
      const { swap, SWAP_DEFAULTS } = await import('./swap.ts');
      const quick = values.quick ? { rounds: 1, swaps: 50, loads: 10, outputTokens: 16, steps: 40 } : {};
      outcome = await swap(
        { ...SWAP_DEFAULTS, ...quick, ...(rounds ? { rounds } : {}), modelPath: modelPath(values.model) },
        log,
      );
      break;
    }
    case 'gateway': {
      const { gateway, GATEWAY_DEFAULTS } = await import('./gateway.ts');
      const quick = values.quick ? { rounds: 1, requests: 50, loadSeconds: 1, streamTokens: 500 } : {};
      outcome = await gateway({ ...GATEWAY_DEFAULTS, ...quick, ...(rounds ? { rounds } : {}) }, log);
      break;
    }
    case 'ledger': {
      const { ledger, LEDGER_DEFAULTS } = await import('./ledger.ts');
      const quick = values.quick ? { rounds: 1, receipts: 100, proofs: 20 } : {};
      outcome = await ledger({ ...LEDGER_DEFAULTS, ...quick, ...(rounds ? { rounds } : {}) }, log);
      break;
    }
    case 'datanets': {
      const { DATANET_DEFAULTS, DATANET_QUICK, datanets } = await import('./datanets.ts');
      outcome = await datanets(
        { ...DATANET_DEFAULTS, ...(values.quick ? DATANET_QUICK : {}), modelPath: modelPath(values.model) },
        log,
      );
      break;
    }
    case 'train': {
      const { parseParts, train } = await import('./train/train.ts');
      const { TRAIN_DEFAULTS, TRAIN_QUICK } = await import('./train/setup.ts');
      outcome = await train(
        {
          ...TRAIN_DEFAULTS,
          ...(values.quick ? TRAIN_QUICK : {}),
          ...(rounds ? { rounds } : {}),
          only: parseParts(values.only),
          python: values.python,
          dataFolder: values.data,
          modelPath: modelPath(values.model),
        },
        log,
      );
      break;
    }
    default:
      throw new Error(`there is no benchmark "${name}"\n${USAGE}`);
  }
  // Paths of this machine are nobody's business and say nothing.
  const args = process.argv.slice(2).map((a) => (path.isAbsolute(a) || a.startsWith('..') ? path.basename(a) : a));
  // A quick run is no result: it is not written where results are kept.
  publish(outcome.report, runInfo(args, outcome.versions), values.quick ? os.tmpdir() : undefined);
}

// An exit runs the handlers that end the measured programs; the default of a signal does not.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => process.exit(130));

run().catch((error: Error) => {
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 1;
});

/** The typed face of the native trainer: what goes into C++ is checked here. */
import { call, check, checkInteger, checkNumber } from './checks.ts';
import {
  type ModelInfo,
  TARGETS,
  type TrainedPair,
  type TrainedPrefix,
  type Trainer,
  type TrainerMemory,
  type TrainerOptions,
  type TrainingRows,
} from './types.ts';

export interface NativeTrainerModel {
  trainerMemory(options: object): TrainerMemory;
}
/** As Trainer, but targets are numbers. */
type NativePair = Omit<TrainedPair, 'target'> & { target: number };
export type NativeTrainer = Omit<Trainer, 'pairs' | 'gradients' | 'setPairs'> & {
  pairs(): NativePair[];
  gradients(): NativePair[];
  setPairs(pairs: NativePair[]): void;
};

const ROWS_MAX = 1 << 20;

function nativeOptions(info: ModelInfo, options: TrainerOptions): object {
  check(options.method === 'lora' || options.method === 'prefix', 'method is lora or prefix');
  if (options.method === 'lora') {
    checkInteger(options.rank, 1, 1024, 'rank');
    checkInteger(new Set(options.targets).size, 1, TARGETS.length, 'the number of targets');
  } else {
    checkInteger(options.prefixTokens, 1, 8192, 'prefixTokens');
  }
  checkNumber(options.scale, 1e-6, 1e6, 'scale');
  checkNumber(options.dropout, 0, 0.95, 'dropout');
  checkInteger(options.seed, 0, 0xffff_ffff, 'seed');
  checkInteger(options.rowsMax, 2, ROWS_MAX, 'rowsMax');
  checkNumber(options.share, 0.05, 0.95, 'share');
  check(info.device.kind === 'cpu', `training computes on the CPU, but the model is on ${info.device.name}`);
  const targets = options.targets.map((target) => TARGETS.indexOf(target));
  check(!targets.includes(-1), 'unknown target');
  return { ...options, targets };
}

export function trainerMemory(model: NativeTrainerModel, info: ModelInfo, options: TrainerOptions): TrainerMemory {
  return call(() => model.trainerMemory(nativeOptions(info, options)));
}

export function createTrainer(
  make: new (model: NativeTrainerModel, options: object) => NativeTrainer,
  model: NativeTrainerModel,
  info: ModelInfo,
  options: TrainerOptions,
): Trainer {
  const trainer = call(() => new make(model, nativeOptions(info, options)));
  const checkRows = (rows: TrainingRows) => {
    check(rows.tokens instanceof Int32Array && rows.starts instanceof Int32Array, 'tokens and starts are Int32Arrays');
    check(rows.weights instanceof Float32Array, 'weights must be a Float32Array');
    const count = rows.tokens.length;
    checkInteger(count, 1, options.rowsMax, 'the number of rows');
    check(rows.weights.length === count, 'there is one weight for each row');
    const examples = rows.starts.length - 1;
    check(
      examples >= 1 && rows.starts[0] === 0 && rows.starts[examples] === count,
      'starts run from 0 to the number of rows',
    );
    for (let i = 0; i < examples; i++) {
      check(rows.starts[i + 1]! > rows.starts[i]!, 'starts must rise');
      check(
        rows.weights[rows.starts[i + 1]! - 1] === 0,
        'the last row of an example predicts nothing, so its weight is 0',
      );
    }
    for (let i = 0; i < count; i++) {
      const token = rows.tokens[i]!;
      check(token >= 0 && token < info.vocabulary, `there is no token ${token}`);
      check(Number.isFinite(rows.weights[i]!), 'weights must be finite');
    }
    return examples;
  };
  const named = (pairs: NativePair[]): TrainedPair[] =>
    pairs.map((pair) => ({ ...pair, target: TARGETS[pair.target]! }));
  return {
    get parameters() {
      return call(() => trainer.parameters);
    },
    get bytes() {
      return call(() => trainer.bytes);
    },
    accumulate(rows, divisor) {
      checkRows(rows);
      checkNumber(divisor, 1e-9, 1e12, 'divisor');
      return call(() => trainer.accumulate(rows, divisor));
    },
    accumulatePreference(rows, reference, beta, divisor) {
      const examples = checkRows(rows);
      check(examples % 2 === 0, 'preferences come in pairs');
      check(
        reference instanceof Float64Array && reference.length === examples,
        'there is one reference for each example',
      );
      checkNumber(beta, 1e-6, 100, 'beta');
      checkNumber(divisor, 1e-9, 1e12, 'divisor');
      return call(() => trainer.accumulatePreference(rows, reference, beta, divisor));
    },
    evaluate(rows, adapter) {
      checkRows(rows);
      return call(() => trainer.evaluate(rows, adapter));
    },
    logProbabilities(rows, adapter) {
      checkRows(rows);
      return call(() => trainer.logProbabilities(rows, adapter));
    },
    update(step) {
      checkNumber(step.learningRate, 0, 100, 'learningRate');
      checkNumber(step.beta1, 0, 0.999999, 'beta1');
      checkNumber(step.beta2, 0, 0.9999999, 'beta2');
      checkNumber(step.epsilon, 0, 1, 'epsilon');
      checkNumber(step.weightDecay, 0, 10, 'weightDecay');
      checkNumber(step.clipNorm, 0, 1e9, 'clipNorm');
      return call(() => trainer.update(step));
    },
    pairs: () => named(call(() => trainer.pairs())),
    gradients: () => named(call(() => trainer.gradients())),
    setPairs(pairs) {
      for (const pair of pairs) {
        check(pair.a instanceof Float32Array && pair.b instanceof Float32Array, 'pairs hold Float32Arrays');
        check(TARGETS.includes(pair.target), `unknown target ${pair.target}`);
        const { in: width, out } = info.targets[pair.target];
        checkInteger(pair.layer, 0, info.layers - 1, 'layer');
        check(
          pair.a.length === width * options.rank && pair.b.length === out * options.rank,
          `the pair of ${pair.target} in layer ${pair.layer} has not the trainer's shape`,
        );
      }
      call(() => trainer.setPairs(pairs.map((pair) => ({ ...pair, target: TARGETS.indexOf(pair.target) }))));
    },
    prefix: (): TrainedPrefix[] => call(() => trainer.prefix()),
    snapshot: () => call(() => trainer.snapshot()),
    restore(snapshot) {
      check(snapshot instanceof Uint8Array, 'a snapshot is bytes');
      call(() => trainer.restore(snapshot));
    },
    longestHoldMs: () => trainer.longestHoldMs(),
    close: () => trainer.close(),
  };
}

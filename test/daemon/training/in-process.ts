/** Training workers in this thread over the double: the real task, loop, folders and messages, without a model. */
import type { TrainedPair } from '../../../addon/types.ts';
import type { BaseShape } from '../../../daemon/models/inspect.ts';
import type { RunOutcome, RunTask, Trial } from '../../../daemon/training/messages.ts';
import type { TrainingWorkers } from '../../../daemon/training/pool.ts';
import { runTask, type TrainableModel } from '../../../daemon/training/run-task.ts';
import { describeTinyModel } from '../../support/tiny-models.ts';
import { DoubleTrainer, type DoubleTrainerScript } from './double.ts';

export const SHAPE: BaseShape = describeTinyModel('llama', 'unused', { layers: 1 });
const RANK = 2;

/** Its one pair says what its weights are. */
class PairTrainer extends DoubleTrainer {
  override pairs(): TrainedPair[] {
    const values = new Float64Array(this.snapshot().buffer);
    const { in: width, out } = SHAPE.targets.attn_v;
    const fill = (length: number) =>
      Float32Array.from({ length }, (_, i) => Math.sin((values[i % values.length] as number) + i));
    return [{ target: 'attn_v', layer: 0, a: fill(RANK * width), b: fill(RANK * out) }];
  }
}

export class InProcessWorkers implements TrainingWorkers {
  script: DoubleTrainerScript = {};
  memoryBytes = 1000;
  /** Runs that were given the worker, in order. */
  readonly served: string[] = [];
  /** Asked when a run begins: rejects as a dying worker does. */
  dies: (task: Omit<RunTask, 'type'>) => boolean = () => false;
  trainers: DoubleTrainer[] = [];

  async build(): Promise<never> {
    throw new Error('datasets are made elsewhere in these tests');
  }
  async trial(): Promise<Trial> {
    throw new Error('nothing is timed in these tests');
  }

  async run(task: Omit<RunTask, 'type'>): Promise<RunOutcome> {
    this.served.push(task.folder.split('/').at(-1) as string);
    // A thread that ends by itself closes its port.
    if (this.dies(task)) {
      task.port.close();
      throw new Error('Worker exited with code: 1');
    }
    const model = {
      info: { ...SHAPE, device: { kind: 'cpu', name: 'CPU' } } as unknown as TrainableModel['info'],
      createTrainer: () => {
        const trainer = new PairTrainer(this.script);
        this.trainers.push(trainer);
        return trainer;
      },
      trainerMemory: () => ({ parameters: this.memoryBytes, activations: 0, transposedWeights: 0 }),
    };
    return await runTask(model, { type: 'run', ...task });
  }

  async close(): Promise<void> {}
}

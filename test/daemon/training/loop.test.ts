import { createHash } from 'node:crypto';
import { appendFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type Disk, realDisk } from '../../../daemon/training/disk.ts';
import { EventLog, EventReader } from '../../../daemon/training/event-log.ts';
import { type Command, type LoopOptions, type LoopOutcome, TrainingLoop } from '../../../daemon/training/loop.ts';
import type { Recipe, RecipeInput, TrainingEvent } from '../../../daemon/training/protocol.ts';
import { planOf } from '../../../daemon/training/run-data.ts';
import { RunFolder } from '../../../daemon/training/run-folder.ts';
import { DoubleTrainer, type DoubleTrainerScript } from './double.ts';
import { temporaryFolder, testData, testRecipe } from './support.ts';

let root: ReturnType<typeof temporaryFolder>;
beforeEach(() => {
  root = temporaryFolder();
});
afterEach(() => root.remove());

/** Stands for a process that ends in the middle: nothing after it happens. */
class Killed extends Error {}

interface Tried {
  outcome: LoopOutcome | 'killed' | Error;
  trainer: DoubleTrainer;
  published: string[];
}

const LENGTHS = [6, 9, 14, 4, 20, 11, 8, 5, 16, 10];

interface Attempt {
  recipe?: Recipe;
  script?: DoubleTrainerScript;
  /** Asked before each micro-batch, with how often it was asked. */
  command?: (asked: number) => Command;
  publish?: (folder: string) => void;
  disk?: Disk;
  validation?: boolean;
  resumePointMs?: number;
}

/** One life of a process with a run. */
async function attempt(path: string, a: Attempt = {}): Promise<Tried> {
  mkdirSync(path, { recursive: true });
  const recipe = a.recipe ?? testRecipe();
  const data = testData(path, LENGTHS, recipe);
  const validation = a.validation ? testData(path, [7, 12, 9], recipe) : null;
  const folder = new RunFolder(path, a.disk ?? realDisk);
  folder.clear();
  const events = EventLog.open(folder.eventsPath);
  const trainer = new DoubleTrainer(a.script);
  const published: string[] = [];
  let asked = 0;
  const options: LoopOptions = {
    recipe,
    trainer,
    rowsMax: 45,
    plan: planOf(data, recipe, 45),
    data,
    validation,
    folder,
    events,
    command: () => a.command?.(asked++) ?? 'run',
    encode: () => [{ name: 'weights', bytes: trainer.snapshot() }],
    publish: async (from, as, facts) => {
      a.publish?.(from);
      const bytes = readFileSync(join(from, 'weights'));
      const digest = createHash('sha256').update(bytes).digest('hex');
      published.push(`${as === 'result' ? 'final' : facts.step} ${digest.slice(0, 8)}`);
      return { ...facts, adapter: `x:ckpt-step-${facts.step}`, digest, createdAt: '' };
    },
    memoryBytes: () => 1,
    ...(a.resumePointMs === undefined ? {} : { resumePointMs: a.resumePointMs }),
  };
  let outcome: Tried['outcome'];
  try {
    outcome = await new TrainingLoop(options).run();
  } catch (error) {
    outcome = error instanceof Killed ? 'killed' : (error as Error);
  } finally {
    events.close();
    data.close();
    validation?.close();
  }
  return { outcome, trainer, published };
}

function eventsOf(path: string): TrainingEvent[] {
  const reader = new EventReader(join(path, 'events.ndjson'), 0);
  const all: TrainingEvent[] = [];
  for (let some = reader.next(); some.length > 0; some = reader.next()) all.push(...some);
  return all;
}

/** What must be the same however often a run was cut off: all but times, speeds, remarks, and the checkpoints of pauses. */
function told(path: string, scheduled: ReadonlySet<unknown> | null = null) {
  return eventsOf(path)
    .filter(({ type }) => type === 'metrics' || type === 'checkpoint')
    .map(({ type, data }) => {
      const {
        tokensPerSecond: _,
        elapsedSeconds: _e,
        remainingSeconds: _r,
        createdAt: _c,
        ...rest
      } = data as Record<string, unknown>;
      return { type, ...(rest as { step: number }) };
    })
    .filter(({ type, step }) => type !== 'checkpoint' || scheduled === null || scheduled.has(step));
}

const checkpointsOf = (path: string) =>
  new Set(
    told(path)
      .filter(({ type }) => type === 'checkpoint')
      .map(({ step }) => step),
  );

const recipes: Partial<RecipeInput>[] = [
  {},
  { packing: false, checkpointEverySteps: 2 },
  { method: { type: 'dpo', beta: 0.1 }, batchSize: 2 },
  { epochs: 4, validateEverySteps: 2, earlyStopping: { patience: 2 }, checkpointEverySteps: 3 },
];

describe('training loop', () => {
  it('reports every step once, with a checkpoint at each epoch, and publishes the last', async () => {
    const path = join(root.path, 'run');
    const { outcome, trainer, published } = await attempt(path);
    expect(outcome).toBe('succeeded');
    const all = told(path);
    expect(all.filter(({ type }) => type === 'metrics').map((e) => e.step)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    expect(published.map((line) => line.split(' ')[0])).toEqual(['4', '8', 'final']);
    expect(published[1]?.split(' ')[1]).toBe(published[2]?.split(' ')[1]);
    expect(eventsOf(path).map(({ seq }) => seq)).toEqual(eventsOf(path).map((_, i) => i + 1));
    expect(Math.max(...trainer.batches)).toBeLessThanOrEqual(45);
  });

  for (const [index, given] of recipes.entries()) {
    it(`ends with the same weights and the same events wherever it was cut off (recipe ${index + 1})`, async () => {
      const recipe = testRecipe(given);
      const validation = given.validateEverySteps !== undefined;
      const whole = join(root.path, `whole-${index}`);
      const straight = await attempt(whole, { recipe, validation });
      expect(straight.outcome).toBe('succeeded');
      const expected = {
        weights: Buffer.from(straight.trainer.snapshot()).toString('hex'),
        told: told(whole),
        last: straight.published.at(-1),
      };
      let number = 0;
      await fc.assert(
        fc.asyncProperty(
          fc.array(
            fc.record({
              at: fc.integer({ min: 0, max: 30 }),
              how: fc.constantFrom('kill', 'pause', 'stop', 'kill while publishing'),
            }),
            { maxLength: 4 },
          ),
          async (cuts) => {
            const path = join(root.path, `cut-${index}-${number++}`);
            for (const { at, how } of cuts) {
              let calls = 0;
              const cut = await attempt(path, {
                recipe,
                validation,
                // Resume points at every step, so that a later life begins in the middle.
                resumePointMs: at % 2 === 0 ? 0 : 60_000,
                command: (asked) => (asked >= at && (how === 'pause' || how === 'stop') ? how : 'run'),
                script: {
                  onAccumulate: (call) => {
                    if (how === 'kill' && call > at) throw new Killed();
                  },
                },
                publish: () => {
                  if (how === 'kill while publishing' && calls++ >= at % 3) throw new Killed();
                },
              });
              if (cut.outcome === 'succeeded') break;
              expect(cut.outcome).toBe(how.startsWith('kill') ? 'killed' : how === 'pause' ? 'paused' : 'stopped');
            }
            const last = await attempt(path, { recipe, validation });
            expect(last.outcome).toBe('succeeded');
            expect(Buffer.from(last.trainer.snapshot()).toString('hex')).toBe(expected.weights);
            expect(told(path, checkpointsOf(whole))).toEqual(expected.told);
            expect(last.published.at(-1)).toBe(expected.last);
          },
        ),
        { numRuns: 12 },
      );
    });
  }

  it('pauses within one micro-batch, and goes on from the last whole step', async () => {
    const path = join(root.path, 'run');
    const recipe = testRecipe({ packing: false });
    const paused = await attempt(path, { recipe, command: (asked) => (asked >= 5 ? 'pause' : 'run') });
    expect(paused.outcome).toBe('paused');
    expect(paused.trainer.accumulations).toBe(4);
    // Whoever pauses can look at what there is.
    expect(paused.published.map((line) => line.split(' ')[0])).toEqual(['1']);
    const resumed = await attempt(path, { recipe });
    const whole = await attempt(join(root.path, 'other'), { recipe });
    expect(resumed.trainer.snapshot()).toEqual(whole.trainer.snapshot());
  });

  it('cancels within one micro-batch and saves nothing', async () => {
    const path = join(root.path, 'run');
    const { outcome, trainer } = await attempt(path, { command: (asked) => (asked >= 3 ? 'cancel' : 'run') });
    expect(outcome).toBe('cancelled');
    expect(trainer.accumulations).toBeLessThanOrEqual(3);
    expect(existsSync(join(path, 'resume'))).toBe(false);
  });

  it('goes on from the resume point before when the newest is damaged', async () => {
    const path = join(root.path, 'run');
    const whole = await attempt(join(root.path, 'whole'));
    await attempt(path, { resumePointMs: 0, command: (asked) => (asked >= 12 ? 'pause' : 'run') });
    const folder = new RunFolder(path);
    const step = folder.readResumePoint()?.point.step as number;
    const file = join(path, 'resume', `step-${step}`, 'trainer.bin');
    const bytes = readFileSync(file);
    bytes[20] = (bytes[20] as number) ^ 1;
    writeFileSync(file, bytes);
    expect(folder.readResumePoint()?.point.step).toBeLessThan(step);
    const resumed = await attempt(path);
    expect(resumed.trainer.snapshot()).toEqual(whole.trainer.snapshot());
    expect(told(path, new Set([4, 8]))).toEqual(told(join(root.path, 'whole')));
  });

  it('drops a torn last line and goes on with its number', async () => {
    const path = join(root.path, 'run');
    await attempt(path, { resumePointMs: 0, command: (asked) => (asked >= 12 ? 'pause' : 'run') });
    const before = eventsOf(path).length;
    appendFileSync(join(path, 'events.ndjson'), `{"seq":${before + 1},"time":"2026`);
    expect(eventsOf(path)).toHaveLength(before);
    await attempt(path);
    expect(eventsOf(path).map(({ seq }) => seq)).toEqual(eventsOf(path).map((_, i) => i + 1));
    expect(eventsOf(path).length).toBeGreaterThan(before);
  });

  it('stops early and publishes the best', async () => {
    const path = join(root.path, 'run');
    const losses = [3, 2, 2.5, 2.6, 2.7];
    const recipe = testRecipe({ epochs: 9, earlyStopping: { patience: 2 } });
    const { outcome, published } = await attempt(path, {
      recipe,
      validation: true,
      script: { evaluateLoss: (call) => losses[call - 1] },
    });
    expect(outcome).toBe('succeeded');
    // One validation an epoch of four steps: the second was the best, the fourth the last.
    expect(published.map((line) => line.split(' ')[0])).toEqual(['4', '8', '12', '16', 'final']);
    expect(published[4]?.split(' ')[1]).toBe(published[1]?.split(' ')[1]);
    expect(eventsOf(path).some(({ message }) => message.includes('Stopped early at step 16'))).toBe(true);
  });

  it('stops at a loss that is no number, says where, and keeps the weights of before', async () => {
    const path = join(root.path, 'run');
    const recipe = testRecipe({ packing: false });
    const { outcome, published } = await attempt(path, {
      recipe,
      script: { lossOf: (call) => (call === 8 ? Number.NaN : undefined) },
    });
    expect(outcome).toMatchObject({ name: 'RunError', code: 'loss_not_finite', param: 'training_file' });
    expect((outcome as Error).message).toMatch(/step 3 .*example \d+ of/);
    expect(published.map((line) => line.split(' ')[0])).toEqual(['2']);
    const metrics = told(path).filter(({ type }) => type === 'metrics');
    expect(metrics).toHaveLength(2);
  });

  it('fails with disk_full when a checkpoint cannot be saved, and leaves nothing half-written', async () => {
    const path = join(root.path, 'run');
    let full = false;
    const disk: Disk = {
      freeBytes: () => 1e12,
      write(file, bytes) {
        if (full && file.includes('weights')) {
          realDisk.write(file, bytes.subarray(0, 3));
          throw Object.assign(new Error('no space'), { code: 'ENOSPC' });
        }
        realDisk.write(file, bytes);
      },
    };
    const { outcome, published } = await attempt(path, {
      disk,
      script: {
        onAccumulate: (call) => {
          full = call > 5;
        },
      },
    });
    expect(outcome).toMatchObject({ code: 'disk_full' });
    expect(published.map((line) => line.split(' ')[0])).toEqual(['4']);
    const folder = new RunFolder(path);
    expect(folder.checkpoints()).toEqual([4]);
    full = false;
    // Once there is room, it could go on from what it has.
    expect((await attempt(path)).outcome).toBe('succeeded');
  });

  it('goes on without a resume point that nobody asked for when the disk is full', async () => {
    const path = join(root.path, 'run');
    const disk: Disk = {
      freeBytes: () => 1e12,
      write(file, bytes) {
        if (file.includes('trainer.bin') && !existsSync(join(path, 'checkpoints'))) {
          throw Object.assign(new Error('no space'), { code: 'ENOSPC' });
        }
        realDisk.write(file, bytes);
      },
    };
    const { outcome } = await attempt(path, { disk, resumePointMs: 0 });
    expect(outcome).toBe('succeeded');
    expect(eventsOf(path).filter(({ level }) => level === 'warn')).toHaveLength(1);
  });
});

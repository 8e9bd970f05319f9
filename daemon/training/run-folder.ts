/**
 * What a run keeps on disk, `<root>/<id>/`:
 *   request.json, state.json     what was asked and how it stands; replaced as a whole by the main thread
 *   events.ndjson                all that happened (event-log.ts)
 *   resume/step-N/               all that decides how the run goes on: trainer.bin and point.json, which has its SHA-256
 *   result/                      of a method whose result is no adapter: what came out
 *   checkpoints/step-N/          a PEFT folder with checkpoint.json; best/ the same of the best step so far
 */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { TRAINING_LIMITS } from '../limits.ts';
import { clearTemporary, type Disk, placeFolder, realDisk, replaceFile } from './disk.ts';
import type { NamedBytes } from './peft-folder.ts';
import {
  type CheckpointMetrics,
  type RunCheckpoint,
  type RunRequest,
  type RunStatus,
  runRequest,
  type StepMetrics,
} from './protocol.ts';

const STEP = /^step-(\d{1,10})$/;

/** Sums over the micro-batches of the step that was computed last. */
const stepSums = z.object({
  loss: z.number(),
  weight: z.number(),
  correct: z.number(),
  counted: z.number(),
  preferred: z.number(),
  margin: z.number(),
  pairs: z.number(),
  tokens: z.number(),
  gradientNorm: z.number(),
  learningRate: z.number(),
});
export type StepSums = z.output<typeof stepSums>;

const pointSchema = z.object({
  version: z.literal(1),
  trainerSha256: z.string(),
  /** Optimiser steps that are in the weights. */
  step: z.number().int().min(0),
  /** False: the step's weights are there, but its validation, metrics and checkpoint are still to come. */
  reported: z.boolean(),
  sums: stepSums.nullable(),
  trainedTokens: z.number(),
  elapsedSeconds: z.number(),
  stopping: z.object({
    /** Null: nothing was validated yet. */
    bestLoss: z.number().nullable(),
    bestStep: z.number().int(),
    bestMetrics: z.custom<CheckpointMetrics>().nullable(),
    /** Validations since the best. */
    waited: z.number().int(),
    stopped: z.boolean(),
  }),
});
export type ResumePoint = Omit<z.output<typeof pointSchema>, 'version' | 'trainerSha256'>;

export interface RunState {
  version: 1;
  status: RunStatus;
  /** What the owner last asked for; outlives a crash. */
  wanted: 'run' | 'pause' | 'cancel';
  baseDigest: string;
  steps: number;
  step: number;
  epoch: number;
  trainedTokens: number;
  memoryBytes: number | null;
  /** How often its worker or the daemon died since the run last moved on, and at which saved step. */
  crashes: number;
  crashedAt: number;
  checkpoints: RunCheckpoint[];
  error: { code: string; message: string; param: string | null } | null;
  /** Of a run that is over: what there is to know of its events without reading them. */
  told: { lastEvent: number; metrics: StepMetrics | null } | null;
  createdAt: string;
  /** When it last entered the queue; orders the queue. */
  queuedAt: string;
  startedAt: string | null;
  /** When it last got the machine, for fair turns. */
  servedAt: string | null;
  finishedAt: string | null;
}

export class RunFolder {
  readonly path: string;
  readonly disk: Disk;

  constructor(path: string, disk: Disk = realDisk) {
    this.path = path;
    this.disk = disk;
  }

  get eventsPath(): string {
    return join(this.path, 'events.ndjson');
  }

  /** Removes what was not finished when a process died. */
  clear(): void {
    for (const folder of [this.path, join(this.path, 'resume'), join(this.path, 'checkpoints')]) {
      if (existsSync(folder)) clearTemporary(folder);
    }
  }

  create(request: RunRequest, state: RunState): void {
    placeFolder(
      this.path,
      [
        { name: 'request.json', bytes: Buffer.from(JSON.stringify(request)) },
        { name: 'state.json', bytes: Buffer.from(JSON.stringify(state)) },
      ],
      this.disk,
    );
  }

  /** @throws Error if the files are not what was written */
  read(): { request: RunRequest; state: RunState } {
    const request = runRequest.parse(JSON.parse(readFileSync(join(this.path, 'request.json'), 'utf8')));
    const state = JSON.parse(readFileSync(join(this.path, 'state.json'), 'utf8')) as RunState;
    if (state.version !== 1 || typeof state.status !== 'string') throw new Error(`${this.path}/state.json is damaged`);
    return { request, state };
  }

  writeState(state: RunState): void {
    replaceFile(join(this.path, 'state.json'), JSON.stringify(state), this.disk);
  }

  /** @throws RunError `disk_full` */
  writeResumePoint(point: ResumePoint, trainer: Uint8Array): void {
    const trainerSha256 = createHash('sha256').update(trainer).digest('hex');
    placeFolder(
      join(this.path, 'resume', `step-${point.step}`),
      [
        { name: 'trainer.bin', bytes: trainer },
        { name: 'point.json', bytes: Buffer.from(JSON.stringify({ version: 1, trainerSha256, ...point })) },
      ],
      this.disk,
    );
    for (const step of this.steps('resume').slice(0, -TRAINING_LIMITS.resumePointsKept))
      this.removeStep('resume', step);
  }

  /** The newest that is whole; null: the run begins at the beginning. */
  readResumePoint(): { point: ResumePoint; trainer: Uint8Array } | null {
    for (const step of this.steps('resume').reverse()) {
      const folder = join(this.path, 'resume', `step-${step}`);
      try {
        const trainer = readFileSync(join(folder, 'trainer.bin'));
        const {
          version: _,
          trainerSha256,
          ...point
        } = pointSchema.parse(JSON.parse(readFileSync(join(folder, 'point.json'), 'utf8')));
        if (createHash('sha256').update(trainer).digest('hex') === trainerSha256) return { point, trainer };
      } catch {
        // Damaged: the one before it is as good, only older.
      }
    }
    return null;
  }

  dropResumePoints(): void {
    rmSync(join(this.path, 'resume'), { recursive: true, force: true });
  }

  checkpointPath(step: number): string {
    return join(this.path, 'checkpoints', `step-${step}`);
  }

  /** @throws RunError `disk_full` */
  writeCheckpoint(step: number, files: readonly NamedBytes[], metrics: CheckpointMetrics, epoch: number): void {
    const facts = { name: 'checkpoint.json', bytes: Buffer.from(JSON.stringify({ step, epoch, metrics })) };
    placeFolder(this.checkpointPath(step), [...files, facts], this.disk);
  }

  checkpoints(): number[] {
    return this.steps('checkpoints');
  }

  readCheckpoint(step: number): { step: number; epoch: number; metrics: CheckpointMetrics } {
    return JSON.parse(readFileSync(join(this.checkpointPath(step), 'checkpoint.json'), 'utf8'));
  }

  removeCheckpoint(step: number): void {
    this.removeStep('checkpoints', step);
  }

  bestPath(step: number): string {
    return join(this.path, 'best', `step-${step}`);
  }

  /** The best of before stays until a resume point names the new one. */
  writeBest(step: number, files: readonly NamedBytes[]): void {
    placeFolder(this.bestPath(step), files, this.disk);
  }

  readBest(step: number): NamedBytes[] {
    const path = this.bestPath(step);
    return readdirSync(path).map((name) => ({ name, bytes: readFileSync(join(path, name)) }));
  }

  /** Keeps only the best that the resume point names. */
  keepBest(step: number): void {
    for (const other of this.steps('best')) if (other !== step) this.removeStep('best', other);
  }

  /** Of a method whose result nothing serves. */
  writeResult(files: readonly NamedBytes[]): void {
    placeFolder(join(this.path, 'result'), files, this.disk);
  }

  remove(): void {
    rmSync(this.path, { recursive: true, force: true });
  }

  private steps(folder: 'resume' | 'checkpoints' | 'best'): number[] {
    const path = join(this.path, folder);
    if (!existsSync(path)) return [];
    return readdirSync(path)
      .map((name) => STEP.exec(name)?.[1])
      .filter((step) => step !== undefined)
      .map(Number)
      .sort((a, b) => a - b);
  }

  private removeStep(folder: 'resume' | 'checkpoints' | 'best', step: number): void {
    rmSync(join(this.path, folder, `step-${step}`), { recursive: true, force: true });
  }
}

export function ensureFolder(path: string): void {
  mkdirSync(path, { recursive: true });
}

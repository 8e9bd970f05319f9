/** Reports on disk, `evaluations/<id>.json` in the data folder; whole or not there at all. Found again by the digests of the adapters in them. */
import { mkdir, readdir, readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { writeFileDurably } from '../adapters/durable.ts';
import type { EvaluationReport } from '../protocol.ts';
import { EVALUATION_LIMITS } from './limits.ts';

interface Entry {
  createdAt: string;
  digests: Set<string>;
}

const NAME = /^([A-Za-z0-9][A-Za-z0-9_-]{0,63})\.json$/;

export class ReportStore {
  private readonly folder: string;
  private readonly entries = new Map<string, Entry>();

  private constructor(folder: string) {
    this.folder = folder;
  }

  /** `dataDir`: MODELFACTORY_DATA. Files that are no reports are left alone and not listed. */
  static async open(dataDir: string): Promise<ReportStore> {
    const store = new ReportStore(join(dataDir, 'evaluations'));
    await mkdir(store.folder, { recursive: true });
    for (const file of await readdir(store.folder)) {
      // What a write that was cut off left behind (durable.ts).
      if (file.endsWith('.tmp')) await rm(join(store.folder, file), { force: true });
      const id = NAME.exec(file)?.[1];
      const report = id === undefined ? null : await store.read(id);
      if (report !== null) store.index(report);
    }
    return store;
  }

  has(id: string): boolean {
    return this.entries.has(id);
  }

  async save(report: EvaluationReport): Promise<void> {
    await writeFileDurably(join(this.folder, `${report.id}.json`), JSON.stringify(report));
    this.index(report);
    await this.prune();
  }

  async get(id: string): Promise<EvaluationReport | null> {
    return this.entries.has(id) ? await this.read(id) : null;
  }

  /** Newest first; `digest`: only those in which this adapter version was evaluated. */
  async list(digest: string | null = null, limit = 100): Promise<EvaluationReport[]> {
    const ids = [...this.entries]
      .filter(([, { digests }]) => digest === null || digests.has(digest))
      .sort(([, a], [, b]) => (a.createdAt < b.createdAt ? 1 : -1))
      .slice(0, limit)
      .map(([id]) => id);
    const reports = await Promise.all(ids.map((id) => this.read(id)));
    return reports.filter((report) => report !== null);
  }

  private index({ id, createdAt, scores }: EvaluationReport): void {
    const digests = scores.map(({ adapterDigest }) => adapterDigest).filter((digest) => digest !== null);
    this.entries.set(id, { createdAt, digests: new Set(digests) });
  }

  private async prune(): Promise<void> {
    const surplus = this.entries.size - EVALUATION_LIMITS.reportsMax;
    if (surplus <= 0) return;
    const order = [...this.entries].sort(
      ([, a], [, b]) => Math.sign(a.digests.size) - Math.sign(b.digests.size) || (a.createdAt < b.createdAt ? -1 : 1),
    );
    for (const [id] of order.slice(0, surplus)) {
      this.entries.delete(id);
      await rm(join(this.folder, `${id}.json`), { force: true });
    }
  }

  /** Null for what is damaged, too large, or not what its name says. */
  private async read(id: string): Promise<EvaluationReport | null> {
    const path = join(this.folder, `${id}.json`);
    try {
      if ((await stat(path)).size > EVALUATION_LIMITS.reportBytesMax) return null;
      const report = JSON.parse(await readFile(path, 'utf8')) as EvaluationReport;
      return report.id === id && Array.isArray(report.scores) ? report : null;
    } catch {
      return null;
    }
  }
}

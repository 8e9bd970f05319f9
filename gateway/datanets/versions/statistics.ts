/** What a version says of itself, added up from groups of its rows; never of contents. */
import { limits } from '../../limits.ts';

/** Rows that agree in all of this. */
export interface RowGroup {
  contributor: string;
  contribution: string;
  language: string | null;
  generatedBy: string | null;
  rows: number;
  characters: number;
  scores: number;
  /** Approved by whoever contributed them. */
  selfReviewed: number;
}

export interface VersionStatistics {
  rows: number;
  characters: number;
  /** 0 to 100; null: no rows. */
  score_mean: number | null;
  contributors: number;
  contributions: number;
  /** Rows that a model wrote. */
  generated: number;
  self_reviewed: number;
  /** Rows by what they were contributed under. */
  licences: Record<string, number>;
  /** Rows by BCP 47 code; `und` where it was not told. */
  languages: Record<string, number>;
  models: Record<string, number>;
  /** The biggest first. */
  by_contributor: { contributor: string; rows: number; generated: number }[];
}

type Counts = Map<string, number>;

export class StatisticsSum {
  #rows = 0;
  #characters = 0;
  #scores = 0;
  #generated = 0;
  #selfReviewed = 0;
  readonly #contributors = new Map<string, { rows: number; generated: number }>();
  readonly #contributions: Counts = new Map();
  readonly #languages: Counts = new Map();
  readonly #models: Counts = new Map();

  add(group: RowGroup): void {
    const { rows } = group;
    this.#rows += rows;
    this.#characters += group.characters;
    this.#scores += group.scores;
    this.#selfReviewed += group.selfReviewed;
    const generated = group.generatedBy === null ? 0 : rows;
    this.#generated += generated;
    const of = this.#contributors.get(group.contributor) ?? { rows: 0, generated: 0 };
    this.#contributors.set(group.contributor, { rows: of.rows + rows, generated: of.generated + generated });
    count(this.#contributions, group.contribution, rows);
    count(this.#languages, group.language ?? 'und', rows);
    if (group.generatedBy !== null) count(this.#models, group.generatedBy, rows);
  }

  get contributions(): string[] {
    return [...this.#contributions.keys()];
  }

  /** @param licenceOf each contribution's licence. */
  result(licenceOf: (contribution: string) => string): VersionStatistics {
    const licences: Counts = new Map();
    for (const [contribution, rows] of this.#contributions) count(licences, licenceOf(contribution), rows);
    const contributors = [...this.#contributors].map(([contributor, sums]) => ({ contributor, ...sums }));
    contributors.sort((a, b) => b.rows - a.rows || (a.contributor < b.contributor ? -1 : 1));
    return {
      rows: this.#rows,
      characters: this.#characters,
      score_mean: this.#rows === 0 ? null : Math.round((100 * this.#scores) / this.#rows) / 100,
      contributors: contributors.length,
      contributions: this.#contributions.size,
      generated: this.#generated,
      self_reviewed: this.#selfReviewed,
      licences: biggest(licences),
      languages: biggest(this.#languages),
      models: biggest(this.#models),
      by_contributor: contributors.slice(0, limits.statisticsNamesMax),
    };
  }
}

function count(counts: Counts, name: string, rows: number): void {
  counts.set(name, (counts.get(name) ?? 0) + rows);
}

function biggest(counts: Counts): Record<string, number> {
  const sorted = [...counts].sort(([a, x], [b, y]) => y - x || (a < b ? -1 : 1));
  return Object.fromEntries(sorted.slice(0, limits.statisticsNamesMax));
}

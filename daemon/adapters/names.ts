import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import { adapterName } from '../protocol.ts';
import { writeFileDurably } from './durable.ts';
import { AdapterError } from './errors.ts';
import { ADAPTER_LIMITS } from './limits.ts';

const entrySchema = z.object({
  digest: z.string().regex(/^[0-9a-f]{64}$/),
  /** Unix seconds. */
  created: z.number().int(),
  pinned: z.boolean(),
  source: z.string(),
});
/** A list, not an object: `__proto__` is a name like any other. */
const fileSchema = z.object({ version: z.literal(1), names: z.array(entrySchema.extend({ name: adapterName })) });
export type NameEntry = Readonly<z.output<typeof entrySchema>>;

/** Which name means which adapter: one JSON file, replaced whole at each change. In memory only after it is on disk. */
export class NameTable {
  private readonly path: string;
  private entries: ReadonlyMap<string, NameEntry>;

  private constructor(path: string, entries: ReadonlyMap<string, NameEntry>) {
    this.path = path;
    this.entries = entries;
  }

  /** @throws Error if the file is there but cannot be understood: guessing would lose names. */
  static async open(path: string): Promise<NameTable> {
    let text: string;
    try {
      text = await readFile(path, 'utf8');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return new NameTable(path, new Map());
      throw error;
    }
    let parsed: z.output<typeof fileSchema>;
    try {
      parsed = fileSchema.parse(JSON.parse(text));
    } catch {
      throw new Error(
        `${path} is damaged, so the names of the adapters are not known; restore it from a backup, or delete it and add the adapters again`,
      );
    }
    return new NameTable(path, new Map(parsed.names.map(({ name, ...entry }) => [name, entry])));
  }

  get(name: string): NameEntry | undefined {
    return this.entries.get(name);
  }

  all(): ReadonlyMap<string, NameEntry> {
    return this.entries;
  }

  isReferenced(digest: string): boolean {
    for (const entry of this.entries.values()) if (entry.digest === digest) return true;
    return false;
  }

  /** `null` removes the name. */
  async set(name: string, entry: NameEntry | null): Promise<void> {
    await this.setAll([[name, entry]]);
  }

  /** All of them or none. */
  async setAll(changes: readonly (readonly [name: string, entry: NameEntry | null])[]): Promise<void> {
    const next = new Map(this.entries);
    for (const [name, entry] of changes) {
      if (entry) next.set(name, entry);
      else next.delete(name);
    }
    if (next.size > ADAPTER_LIMITS.namesMax) {
      throw new AdapterError('too_large', `there are ${ADAPTER_LIMITS.namesMax} adapters; remove some first`);
    }
    const names = [...next].map(([key, value]) => ({ name: key, ...value }));
    await writeFileDurably(this.path, JSON.stringify({ version: 1, names }, null, 1));
    this.entries = next;
  }
}

/**
 * Adapters as the rest of the daemon knows them: by name. Names and files are here, in the main thread; where the weights
 * are is the engine's business and reported back through `placeOf`.
 */
import { EventEmitter } from 'node:events';
import { join } from 'node:path';
import { LRUCache } from 'lru-cache';
import type { AdapterHandle } from '../engine/slots.ts';
import type { Adapter, AdapterTier } from '../protocol.ts';
import { adapterName } from '../protocol.ts';
import { AdapterError, fromFileError } from './errors.ts';
import { type HubOptions, hubFiles, parseHubSource } from './hub.ts';
import { ADAPTER_LIMITS } from './limits.ts';
import { type NameEntry, NameTable } from './names.ts';
import { type AdapterRecord, encodeRecord } from './record.ts';
import { localFiles } from './source.ts';
import { AdapterStore, type AdapterSummary, type IncomingFile, type StoreOptions } from './store.ts';

/** Of the name under which replaced weights stay. */
const VERSION_DIGITS = 12;

/** Handles kept parsed; each is a few tens of kilobytes. */
const HANDLES_MAX = 256;

export interface RegistryOptions extends StoreOptions {
  hub?: HubOptions;
  /** Where the engine says an adapter is; undefined: only on disk. */
  placeOf?: (digest: string) => { tier: AdapterTier } | undefined;
  /** Whether requests in the engine, waiting ones included, still want it; its files stay until `released` is told. */
  inUse?: (digest: string) => boolean;
}

export interface RegistryEvents {
  /** A name was added, or now means other weights (`replaced` are the ones before). */
  added: [adapter: Adapter, replaced: string | null];
  removed: [name: string, digest: string];
  pinned: [digest: string, pinned: boolean];
  /** No name means this adapter any more; its files go when nobody uses them. The engine should forget it. */
  unreferenced: [digest: string];
}

interface Known {
  entry: NameEntry;
  summary: AdapterSummary;
}

export class AdapterRegistry extends EventEmitter<RegistryEvents> {
  private readonly store: AdapterStore;
  private readonly names: NameTable;
  private readonly hub: HubOptions;
  private readonly placeOf: NonNullable<RegistryOptions['placeOf']>;
  private readonly summaries = new Map<string, AdapterSummary>();
  private readonly handles = new LRUCache<string, AdapterHandle>({ max: HANDLES_MAX });
  private readonly inUse: NonNullable<RegistryOptions['inUse']>;
  /** Digests whose handles are being made, with how many wait for each. */
  private readonly opening = new Map<string, number>();
  /** Digests that no name means but somebody still uses. */
  private readonly retired = new Set<string>();
  /** Changes happen one after the other: imports stream beside them, names and directories change here. */
  private queue: Promise<unknown> = Promise.resolve();
  /** Names whose files are gone or damaged, with why; they are not listed. */
  readonly broken: { name: string; message: string }[] = [];

  private constructor(store: AdapterStore, names: NameTable, options: RegistryOptions) {
    super();
    this.store = store;
    this.names = names;
    this.hub = options.hub ?? {};
    this.placeOf = options.placeOf ?? (() => undefined);
    this.inUse = options.inUse ?? (() => false);
  }

  /** `names.json` lies in the adapters' root. Removes directories that no name means. */
  static async open(options: RegistryOptions): Promise<AdapterRegistry> {
    const store = await AdapterStore.open(options);
    const names = await NameTable.open(join(options.root, 'names.json'));
    const registry = new AdapterRegistry(store, names, options);
    for (const [name, { digest }] of names.all()) {
      try {
        if (!registry.summaries.has(digest)) registry.summaries.set(digest, await store.summary(digest));
      } catch (error) {
        registry.broken.push({ name, message: error instanceof Error ? error.message : String(error) });
      }
    }
    for (const digest of await store.digests()) if (!names.isReferenced(digest)) await store.remove(digest);
    return registry;
  }

  /**
   * Adds from a folder or file on this machine, or `hf:owner/repo[@revision]`, there with the operator's token only if it is the
   * `operator` who asks. @throws AdapterError
   */
  async add(request: { name: string; source: string; replace?: boolean; operator?: boolean }): Promise<Adapter> {
    this.checkName(request.name, request.replace ?? false);
    const hub = parseHubSource(request.source);
    if (!hub) return await this.addFrom(request, localFiles(request.source), () => request.source);
    let commit = hub.revision;
    const access = request.operator === true ? this.hub : { ...this.hub, token: undefined };
    const files = hubFiles(hub, access, (found) => {
      commit = found;
    });
    return await this.addFrom(request, files, () => `hf:${hub.repository}@${commit}`);
  }

  /**
   * Adds from files as they arrive: an upload, or what training made. `keepReplaced`: the weights that had the name before
   * stay, as `NAME@<first 12 digits of their digest>`.
   * @throws AdapterError
   */
  async addFiles(
    request: { name: string; replace?: boolean; source?: string; record?: AdapterRecord; keepReplaced?: boolean },
    files: AsyncIterable<IncomingFile> | Iterable<IncomingFile>,
  ): Promise<Adapter> {
    this.checkName(request.name, request.replace ?? false);
    return await this.addFrom(request, files, () => request.source ?? 'upload');
  }

  list(): Adapter[] {
    const all: Adapter[] = [];
    for (const name of this.names.all().keys()) {
      const known = this.find(name);
      if (known) all.push(this.describe(name, known));
    }
    return all.sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** undefined: no such adapter. */
  get(name: string): Adapter | undefined {
    const known = this.find(name);
    return known && this.describe(name, known);
  }

  /** Digest that the name means now. @throws AdapterError `not_found` */
  digestOf(name: string): string {
    return this.known(name).entry.digest;
  }

  /** What a request to the engine carries. @throws AdapterError `not_found`, or why the files cannot be served */
  async handle(name: string): Promise<AdapterHandle> {
    const { entry, summary } = this.known(name);
    const { digest } = entry;
    const cached = this.handles.get(digest);
    if (cached) return cached;
    // Its files must not go before the request has reached the engine, which then says that it is in use.
    this.opening.set(digest, (this.opening.get(digest) ?? 0) + 1);
    try {
      const handle = await this.store.handle(digest, summary);
      // A removal may have come between; nobody would clear it away.
      if (this.names.isReferenced(digest)) this.handles.set(digest, handle);
      return handle;
    } finally {
      const left = (this.opening.get(digest) ?? 1) - 1;
      if (left > 0) this.opening.set(digest, left);
      else this.opening.delete(digest);
      // Whoever has the handle acts on it before this turn of the event loop ends.
      if (this.retired.has(digest)) setImmediate(() => this.released(digest));
    }
  }

  /** The last request that used an adapter has ended: if no name means it any more, its files go. */
  released(digest: string): void {
    if (!this.retired.has(digest) || this.isUsed(digest)) return;
    this.change(async () => {
      if (this.isUsed(digest) || !this.retired.delete(digest)) return;
      await this.store.remove(digest);
      // What is left behind is cleared away at the next start.
    }).catch(() => {});
  }

  private isUsed(digest: string): boolean {
    return this.opening.has(digest) || this.inUse(digest);
  }

  /** Requests in flight finish on the weights they have. @throws AdapterError `not_found` */
  async remove(name: string): Promise<void> {
    await this.change(async () => {
      const { digest } = this.entry(name);
      await this.names.set(name, null);
      this.emit('removed', name, digest);
      await this.collect(digest);
    });
  }

  /** @throws AdapterError `not_found` */
  async pin(name: string, pinned: boolean): Promise<Adapter> {
    return await this.change(async () => {
      const { entry, summary } = this.known(name);
      const next = { ...entry, pinned };
      await this.names.set(name, next);
      this.emit('pinned', entry.digest, this.isPinned(entry.digest));
      return this.describe(name, { entry: next, summary });
    });
  }

  /** What is on disk of an adapter, for whoever takes it out again. @throws AdapterError `not_found` */
  folder(name: string): { digest: string; path: string; summary: AdapterSummary; created: number } {
    const { entry, summary } = this.known(name);
    return { digest: entry.digest, path: this.store.directory(entry.digest), summary, created: entry.created };
  }

  /** Digests to pin when an engine starts. */
  pinnedDigests(): string[] {
    return [...new Set([...this.names.all().values()].filter(({ pinned }) => pinned).map(({ digest }) => digest))];
  }

  private async addFrom(
    request: { name: string; replace?: boolean; record?: AdapterRecord; keepReplaced?: boolean },
    files: AsyncIterable<IncomingFile> | Iterable<IncomingFile>,
    source: () => string,
  ): Promise<Adapter> {
    const { name } = request;
    // Outside the queue: a slow upload must not hold up the others.
    const staged = await this.store.stage(files, request.record && encodeRecord(request.record));
    try {
      return await this.change(async () => {
        // Somebody may have taken the name while the files came.
        this.checkName(name, request.replace ?? false);
        const before = this.names.get(name);
        const summary = await staged.publish();
        const { digest } = summary;
        const entry: NameEntry = {
          digest,
          created: Math.floor(Date.now() / 1000),
          pinned: before?.pinned ?? false,
          source: source().slice(0, 4096),
        };
        const replaced = before && before.digest !== digest ? before.digest : null;
        const kept = request.keepReplaced && replaced !== null ? versionName(name, replaced) : null;
        try {
          await this.names.setAll([
            [name, entry],
            ...(kept && before ? [[kept, { ...before, pinned: false }] as const] : []),
          ]);
        } catch (error) {
          await this.collect(digest);
          throw error;
        }
        this.summaries.set(digest, summary);
        this.retired.delete(digest);
        const adapter = this.describe(name, { entry, summary });
        this.emit('added', adapter, replaced);
        const version = kept === null ? undefined : this.get(kept);
        if (version) this.emit('added', version, null);
        if (replaced) {
          if (entry.pinned) this.emit('pinned', digest, true);
          await this.collect(replaced);
        }
        return adapter;
      });
    } catch (error) {
      throw fromFileError(error, 'while adding the adapter');
    } finally {
      await staged.discard();
    }
  }

  /** Removes the files of an adapter that no name means any more, at once or when the last request for it has ended. */
  private async collect(digest: string): Promise<void> {
    if (this.names.isReferenced(digest)) return;
    this.handles.delete(digest);
    if (this.summaries.delete(digest)) this.emit('unreferenced', digest);
    if (this.isUsed(digest)) this.retired.add(digest);
    else await this.store.remove(digest);
  }

  private checkName(name: string, replace: boolean): void {
    const valid = adapterName.safeParse(name);
    if (!valid.success) {
      throw new AdapterError('name_invalid', `the name cannot be used: ${valid.error.issues[0]?.message}`, 'name');
    }
    if (!replace && this.names.get(name)) {
      throw new AdapterError(
        'exists',
        `there is an adapter ${name} already; choose another name or replace it`,
        'name',
      );
    }
    if (!this.names.get(name) && this.names.all().size >= ADAPTER_LIMITS.namesMax) {
      throw new AdapterError('too_large', `there are ${ADAPTER_LIMITS.namesMax} adapters; remove some first`);
    }
  }

  private isPinned(digest: string): boolean {
    return [...this.names.all().values()].some((entry) => entry.digest === digest && entry.pinned);
  }

  private entry(name: string): NameEntry {
    const entry = this.names.get(name);
    if (!entry)
      throw new AdapterError('not_found', `there is no adapter named ${JSON.stringify(name.slice(0, 128))}`, 'model');
    return entry;
  }

  private find(name: string): Known | undefined {
    const entry = this.names.get(name);
    const summary = entry && this.summaries.get(entry.digest);
    return entry && summary ? { entry, summary } : undefined;
  }

  private known(name: string): Known {
    const { digest } = this.entry(name);
    const known = this.find(name);
    if (!known) {
      throw new AdapterError(
        'corrupt',
        `the files of adapter ${name} (${digest.slice(0, 12)}…) are missing or damaged; remove it and add it again`,
      );
    }
    return known;
  }

  private describe(name: string, { entry, summary }: Known): Adapter {
    return {
      name,
      digest: entry.digest,
      rankMax: summary.rankMax,
      targets: [...summary.targets],
      bytes: summary.bytes,
      created: entry.created,
      tier: this.placeOf(entry.digest)?.tier ?? 'disk',
      pinned: entry.pinned,
      source: entry.source,
    };
  }

  private change<T>(work: () => Promise<T>): Promise<T> {
    const result = this.queue.then(work);
    this.queue = result.catch(() => {});
    return result;
  }
}

/** Name of a replaced version; the digest tells versions apart, so a long name gives way to it. */
export function versionName(name: string, digest: string): string {
  const suffix = `@${digest.slice(0, VERSION_DIGITS)}`;
  return name.slice(0, ADAPTER_LIMITS.nameLengthMax - suffix.length) + suffix;
}

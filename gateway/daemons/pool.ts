/**
 * The daemons behind this gateway: what each serves and how it is, believed for a second, and who takes a request.
 * One adapter lives on one daemon (rendezvous by its name) unless it was added to several; requests go where it is.
 */
import type { Adapter, BaseModel, DaemonHealth } from '../../daemon/protocol.ts';
import { ApiError, engineUnavailable, modelNotFound } from '../errors.ts';
import { limits } from '../limits.ts';
import type { DaemonClient } from './client.ts';
import { rank } from './rendezvous.ts';

interface Snapshot {
  model: BaseModel;
  adapters: Map<string, Adapter>;
  health: DaemonHealth;
}

interface Node {
  client: DaemonClient;
  snapshot: Snapshot | null;
  /** When the snapshot (or the failure to get one) was taken. */
  at: number;
  refreshing: Promise<void> | null;
  probing: Promise<DaemonHealth | null> | null;
  /** Not asked before this time. */
  downUntil: number;
}

/** What a model id stands for. */
export interface ResolvedModel {
  id: string;
  /** null = the base model. */
  adapter: string | null;
  /** Digest of the adapter's weights; null for a base model. */
  digest: string | null;
  base: BaseModel;
  created: number;
}

/** A model with all that is told of it. */
export type ModelDetails = { id: string; bytes: number; digest: string; created: number } & (
  | { kind: 'base'; tier: null; pinned: null }
  | { kind: 'adapter'; tier: Adapter['tier']; pinned: boolean }
);

const TIER_WEIGHT = { slot: 4, host: 2, disk: 1 } as const;

export class DaemonPool {
  readonly #nodes: Node[];
  readonly #now: () => number;

  constructor(clients: DaemonClient[], now: () => number) {
    this.#nodes = clients.map((client) => ({
      client,
      snapshot: null,
      at: Number.NEGATIVE_INFINITY,
      refreshing: null,
      probing: null,
      downUntil: 0,
    }));
    this.#now = now;
  }

  get clients(): readonly DaemonClient[] {
    return this.#nodes.map((node) => node.client);
  }

  /** Forgets what is known, after a change made through this gateway. */
  invalidate(): void {
    for (const node of this.#nodes) node.at = Number.NEGATIVE_INFINITY;
  }

  #refresh(node: Node): Promise<void> {
    node.refreshing ??= (async () => {
      try {
        const [model, adapters, health] = await Promise.all([
          node.client.model(),
          node.client.adapters(),
          node.client.health(),
        ]);
        node.snapshot = { model, adapters: new Map(adapters.map((adapter) => [adapter.name, adapter])), health };
      } catch {
        node.snapshot = null;
      } finally {
        node.at = this.#now();
        node.refreshing = null;
      }
    })();
    return node.refreshing;
  }

  /** Fresh enough snapshots; a stale one that exists is used while its successor is fetched, so requests do not wait for lists. */
  async #look(fresh: boolean): Promise<void> {
    const now = this.#now();
    const waits: Promise<void>[] = [];
    for (const node of this.#nodes) {
      const age = now - node.at;
      if (age < limits.daemonSnapshotMs && !(fresh && age > 0)) continue;
      const refreshed = this.#refresh(node);
      if (fresh || node.snapshot === null || age > 10 * limits.daemonSnapshotMs) waits.push(refreshed);
    }
    await Promise.all(waits);
  }

  #serving(): (Node & { snapshot: Snapshot })[] {
    return this.#nodes.filter((node): node is Node & { snapshot: Snapshot } => node.snapshot !== null);
  }

  /** All models there are. @throws ApiError engine_unavailable if no daemon answers. */
  async models(): Promise<ResolvedModel[]> {
    await this.#look(false);
    const models = new Map<string, ResolvedModel>();
    for (const { snapshot } of this.#serving()) {
      const base = snapshot.model;
      models.set(base.id, { id: base.id, adapter: null, digest: null, base, created: base.created });
      for (const { name, created, digest } of snapshot.adapters.values()) {
        if (!models.has(name)) models.set(name, { id: name, adapter: name, digest, base, created });
      }
    }
    if (models.size === 0) throw engineUnavailable(limits.retryAfterSeconds);
    return [...models.values()];
  }

  /** All models, base models first. @throws ApiError engine_unavailable if no daemon answers. */
  async details(): Promise<ModelDetails[]> {
    const adapters = await this.adapters();
    const bases = new Map<string, ModelDetails>();
    for (const { snapshot } of this.#serving()) {
      const { id, weightBytes, digest, created } = snapshot.model;
      bases.set(id, { id, kind: 'base', bytes: weightBytes, digest, created, tier: null, pinned: null });
    }
    return [
      ...bases.values(),
      ...adapters
        .filter(({ name }) => !bases.has(name))
        .map(({ name, bytes, digest, created, tier, pinned }): ModelDetails => {
          return { id: name, kind: 'adapter', bytes, digest, created, tier, pinned };
        }),
    ];
  }

  /** @throws ApiError model_not_found, or engine_unavailable if nobody can say. */
  async resolve(id: string): Promise<ResolvedModel> {
    for (const fresh of [false, true]) {
      await this.#look(fresh);
      const serving = this.#serving();
      for (const { snapshot } of serving) {
        if (snapshot.model.id === id)
          return { id, adapter: null, digest: null, base: snapshot.model, created: snapshot.model.created };
      }
      for (const { snapshot } of serving) {
        const adapter = snapshot.adapters.get(id);
        if (adapter !== undefined) {
          const { created, digest } = adapter;
          return { id, adapter: id, digest, base: snapshot.model, created };
        }
      }
      if (fresh && serving.length < this.#nodes.length) throw engineUnavailable(limits.retryAfterSeconds);
    }
    throw modelNotFound(id);
  }

  /** Daemons that can take a request for this model, best first. `spread` decides between equals for the base model. */
  route(model: ResolvedModel, spread: string): DaemonClient[] {
    const now = this.#now();
    const nodes = this.#serving().map((node) => {
      const { snapshot } = node;
      const adapter = model.adapter === null ? null : snapshot.adapters.get(model.adapter);
      const can =
        adapter !== undefined && (model.adapter !== null || snapshot.model.id === model.id) && node.downUntil <= now;
      const health = { ready: 1, degraded: 0.3, starting: 0.01, stopping: 0 }[snapshot.health.status] ?? 0;
      const residency = adapter == null ? 1 : (TIER_WEIGHT[adapter.tier] ?? 1);
      return {
        id: node.client.url,
        weight: can ? (health * residency) / (1 + snapshot.health.queue.waiting) : 0,
        node: node.client,
      };
    });
    const ranked = rank(model.adapter ?? spread, nodes);
    if (ranked.length === 0) throw engineUnavailable(limits.retryAfterSeconds);
    return ranked;
  }

  /** Where a new adapter goes, or who has it already; over this base, where anybody serves that. */
  async placement(name: string, base?: string): Promise<DaemonClient> {
    await this.#look(true);
    const serving = this.#serving();
    const over = serving.filter(({ snapshot }) => snapshot.model.id === base);
    const nodes = (over.length > 0 ? over : serving).map((node) => ({ id: node.client.url, weight: 1, node }));
    const holder = nodes.find(({ node }) => node.snapshot.adapters.has(name));
    const [first] = holder === undefined ? rank(name, nodes) : [holder.node];
    if (first === undefined) throw engineUnavailable(limits.retryAfterSeconds);
    return first.client;
  }

  async holders(name: string): Promise<DaemonClient[]> {
    await this.#look(true);
    const serving = this.#serving();
    if (serving.length === 0) throw engineUnavailable(limits.retryAfterSeconds);
    const holders = serving.filter(({ snapshot }) => snapshot.adapters.has(name)).map(({ client }) => client);
    if (holders.length === 0) throw modelNotFound(name);
    return holders;
  }

  /** Digests that each name of an adapter has now; not `complete` where a daemon does not answer. */
  async served(): Promise<{ digests: Map<string, Set<string>>; complete: boolean }> {
    await this.#look(true);
    const serving = this.#serving();
    const digests = new Map<string, Set<string>>();
    for (const { snapshot } of serving) {
      for (const { name, digest } of snapshot.adapters.values())
        digests.set(name, (digests.get(name) ?? new Set()).add(digest));
    }
    return { digests, complete: serving.length === this.#nodes.length };
  }

  async adapters(): Promise<Adapter[]> {
    await this.#look(true);
    const serving = this.#serving();
    if (serving.length === 0) throw engineUnavailable(limits.retryAfterSeconds);
    const adapters = new Map<string, Adapter>();
    for (const { snapshot } of serving)
      for (const adapter of snapshot.adapters.values()) adapters.set(adapter.name, adapter);
    return [...adapters.values()];
  }

  /** Tries each candidate until one can be reached; once a request may have arrived, its failure is final. */
  async firstReachable<T>(
    candidates: DaemonClient[],
    attempt: (client: DaemonClient) => Promise<T>,
  ): Promise<{ client: DaemonClient; value: T }> {
    let last: unknown;
    for (const client of candidates) {
      try {
        return { client, value: await attempt(client) };
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        if (error.outcomeUnknown) this.#nodeOf(client).at = Number.NEGATIVE_INFINITY;
        if (error.code !== 'engine_unavailable') throw error;
        this.markDown(client);
        last = error;
      }
    }
    throw last ?? engineUnavailable(limits.retryAfterSeconds);
  }

  markDown(client: DaemonClient): void {
    const node = this.#nodeOf(client);
    node.downUntil = this.#now() + limits.daemonCoolDownMs;
    node.at = Number.NEGATIVE_INFINITY;
  }

  #nodeOf(client: DaemonClient): Node {
    return this.#nodes.find((node) => node.client === client) as Node;
  }

  /** As each daemon says now, nothing remembered: null where it does not answer. Callers at the same time share one probe. */
  health(): Promise<(DaemonHealth | null)[]> {
    return Promise.all(
      this.#nodes.map((node) => {
        node.probing ??= node.client
          .health()
          .catch(() => {
            // What was remembered of it is not believed any longer either.
            node.at = Number.NEGATIVE_INFINITY;
            return null;
          })
          .finally(() => {
            node.probing = null;
          });
        return node.probing;
      }),
    );
  }
}

/** Fine-tuned models belong to whoever made the job; admins may use all, others what they were permitted. */
import { LRUCache } from 'lru-cache';
import { canUseModel, type Principal } from '../auth/scopes.ts';
import type { JobRows } from './jobs/job-rows.ts';
import { isFineTunedName, modelOfCheckpoint } from './jobs/model-name.ts';

const NAMES_MAX = 10_000;

export class ModelOwners {
  readonly #rows: JobRows;
  /** A name, once it has an owner, keeps it. */
  readonly #owners = new LRUCache<string, string>({ max: NAMES_MAX });

  constructor(rows: JobRows) {
    this.#rows = rows;
  }

  /** Who owns the model or checkpoint; null: it was not made by a job here, so it is everybody's. */
  async ownerOf(name: string): Promise<string | null> {
    if (!isFineTunedName(name)) return null;
    const model = modelOfCheckpoint(name);
    const known = this.#owners.get(model);
    if (known !== undefined) return known;
    const owner = await this.#rows.ownerOf(model);
    if (owner !== null) this.#owners.set(model, owner);
    return owner;
  }

  async canUse(principal: Principal, name: string): Promise<boolean> {
    if (!canUseModel(principal, name)) return false;
    if (principal.scopes.has('admin')) return true;
    const owner = await this.ownerOf(name);
    if (owner === null || owner === principal.ownerId) return true;
    return this.#rows.isPermitted(name, [principal.keyId, principal.ownerId]);
  }

  /** Whom an owner lets use a model, may not replace or delete it. */
  async canChange(principal: Principal, name: string): Promise<boolean> {
    if (principal.scopes.has('admin')) return true;
    const owner = await this.ownerOf(name);
    return owner === null || owner === principal.ownerId;
  }

  async usable<T>(principal: Principal, items: T[], nameOf: (item: T) => string): Promise<T[]> {
    const usable = await Promise.all(items.map((item) => this.canUse(principal, nameOf(item))));
    return items.filter((_, index) => usable[index]);
  }
}

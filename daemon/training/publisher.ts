/** Makes trained adapters servable: through the registry, which checks them as it checks any adapter. */
import type { AdapterRecord } from '../adapters/record.ts';
import type { AdapterRegistry } from '../adapters/registry.ts';
import { localFiles } from '../adapters/source.ts';
import { DaemonError } from '../errors.ts';
import type { CheckpointFacts } from './loop.ts';
import type { RunCheckpoint, RunRequest } from './protocol.ts';

export interface Publication {
  id: string;
  request: RunRequest;
  /** A whole PEFT folder. */
  folder: string;
  as: 'checkpoint' | 'result';
  facts: CheckpointFacts;
  /** Kept beside the weights, for their card. */
  record: AdapterRecord | undefined;
}

export class Publisher {
  private readonly registry: Pick<AdapterRegistry, 'addFiles' | 'get' | 'remove'>;
  private readonly log: { info(fields: object, message: string): void };

  constructor(registry: Publisher['registry'], log: Publisher['log']) {
    this.registry = registry;
    this.log = log;
  }

  /** Whether the name means an adapter that is not this run's. */
  taken(id: string, name: string): boolean {
    const present = this.registry.get(name);
    return present !== undefined && present.source !== sourceOf(id);
  }

  /** The same again changes nothing. @throws DaemonError */
  async publish({ id, request, folder, as, facts, record }: Publication): Promise<RunCheckpoint | null> {
    // A prefix is kept in the run's folder; nothing serves it.
    if (request.recipe.adapter.type !== 'lora') return null;
    const name = as === 'result' ? request.adapter : `${request.adapter}:ckpt-step-${facts.step}`;
    if (this.taken(id, name)) {
      throw new DaemonError(
        'adapter_exists',
        `there is an adapter ${name} already, and it is not of this run; remove it and make the job again`,
      );
    }
    const asked = { name, replace: true, source: sourceOf(id), ...(record === undefined ? {} : { record }) };
    const { digest } = await this.registry.addFiles(asked, localFiles(folder));
    this.log.info({ run: id, adapter: name, digest }, 'a trained adapter can be served');
    const { step, epoch, metrics } = facts;
    return { step, epoch, adapter: name, digest, metrics, createdAt: new Date().toISOString() };
  }

  /** Removes a checkpoint's name, and with it its files where no other name means them. */
  async withdraw(id: string, name: string): Promise<void> {
    if (this.registry.get(name)?.source === sourceOf(id)) await this.registry.remove(name);
  }
}

/** Registry entries carry it, so that a run replaces its own adapters and nobody else's. */
function sourceOf(id: string): string {
  return `training:${id}`;
}

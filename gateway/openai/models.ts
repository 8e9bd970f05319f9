/** /v1/models and /api/models: the base, every adapter and every alias, as far as the key may use them. */
import type { Context } from 'hono';
import { canAccess } from '../auth/scopes.ts';
import type { ResolvedModel } from '../daemons/pool.ts';
import { ApiError, badRequest, modelNotFound } from '../errors.ts';
import { guardAliases } from '../factory/evaluations/alias-api.ts';
import { canUseAlias } from '../factory/evaluations/resolve.ts';
import { modelOfCheckpoint } from '../factory/jobs/model-name.ts';
import type { AppEnv, Services } from '../services.ts';
import { resolveFor } from './run.ts';

function shape(model: Pick<ResolvedModel, 'id' | 'created'>) {
  return { id: model.id, object: 'model' as const, created: Math.floor(model.created), owned_by: 'modelfactory' };
}

async function usableAliases(services: Services, c: Context<AppEnv>) {
  const all = await services.aliases.list();
  const usable = await Promise.all(all.map((alias) => canUseAlias(services, c.get('principal'), alias)));
  return all.filter((_, index) => usable[index]);
}

export async function listModels(services: Services, c: Context<AppEnv>): Promise<Response> {
  const models = await services.pool.models();
  const usable = await services.factory.owners.usable(c.get('principal'), models, ({ id }) => id);
  const aliases = await usableAliases(services, c);
  const standing = aliases.map(({ alias, createdAt }) => ({ id: alias, created: createdAt / 1000 }));
  return c.json({ object: 'list', data: [...usable, ...standing].map(shape) });
}

export async function listModelDetails(services: Services, c: Context<AppEnv>): Promise<Response> {
  const all = await services.pool.details();
  const models = await services.factory.owners.usable(c.get('principal'), all, ({ id }) => id);
  const aliases = (await usableAliases(services, c)).map(({ alias, model, digest, createdAt }) => {
    const created = Math.floor(createdAt / 1000);
    return { id: alias, kind: 'alias', model, bytes: 0, digest, created, tier: null, pinned: null };
  });
  const marks = await services.factory.sources.markCounts();
  const data = [...models, ...aliases].map((model) => {
    const name = model.kind === 'alias' ? model.model : model.id;
    return { object: 'model', ...model, marks: marks.get(modelOfCheckpoint(name)) ?? 0 };
  });
  return c.json({ object: 'list', data });
}

export async function getModel(services: Services, c: Context<AppEnv>): Promise<Response> {
  const id = c.req.param('model') ?? '';
  const { created } = await resolveFor(services, c.get('principal'), id);
  return c.json(shape({ id, created }));
}

export async function deleteModel(services: Services, c: Context<AppEnv>): Promise<Response> {
  const id = c.req.param('model') ?? '';
  const principal = c.get('principal');
  if ((await services.aliases.find(id)) !== null)
    throw badRequest('model', 'model_not_deletable', `\`${id}\` is an alias; DELETE /api/aliases/${id} deletes it.`);
  const model = await resolveFor(services, principal, id);
  const own = canAccess(principal, 'fine_tuning') && (await services.factory.owners.ownerOf(id)) === principal.ownerId;
  if (!own && !(canAccess(principal, 'adapters') && (await services.factory.owners.canChange(principal, id)))) {
    const message =
      'A key can delete the models it has fine-tuned itself; with the scope `adapters` also those that no other key has.';
    throw new ApiError(403, 'permission_error', 'insufficient_scope', message);
  }
  if (model.adapter === null)
    throw badRequest('model', 'model_not_deletable', `\`${id}\` is the base model; only adapters can be deleted.`);
  await guardAliases(services, c, model.adapter);
  await deleteAdapter(services, model.adapter);
  return c.json({ id, object: 'model', deleted: true });
}

/** From every daemon that has it. */
export async function deleteAdapter(services: Services, name: string): Promise<void> {
  const holders = await services.pool.holders(name);
  if (holders.length === 0) throw modelNotFound(name);
  try {
    for (const client of holders) await client.deleteAdapter(name);
  } finally {
    services.pool.invalidate();
  }
}

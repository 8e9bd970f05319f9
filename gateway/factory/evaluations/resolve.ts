/** An alias as a model. */
import type { Principal } from '../../auth/scopes.ts';
import type { ResolvedModel } from '../../daemons/pool.ts';
import { ApiError, modelNotFound } from '../../errors.ts';
import type { Services } from '../../services.ts';
import type { CurrentAlias } from './alias-rows.ts';

/** A key that is held to certain models may use an alias if it is allowed the alias or what it stands for. */
export async function canUseAlias(services: Services, principal: Principal, alias: CurrentAlias): Promise<boolean> {
  const { models } = principal;
  if (models !== null && !models.has(alias.alias) && !models.has(alias.model)) return false;
  return services.factory.owners.canUse({ ...principal, models: null }, alias.model);
}

/** @throws ApiError 404 if the key may not use it, 409 if the weights that were promoted are not there any more. */
export async function resolveAlias(
  services: Services,
  principal: Principal,
  alias: CurrentAlias,
): Promise<ResolvedModel> {
  if (!(await canUseAlias(services, principal, alias))) throw modelNotFound(alias.alias);
  return promotedWeights(services, alias);
}

/** The version that was promoted: under its name, or, where that has other weights by now, under NAME@DIGITS as kept versions are called. */
export async function promotedWeights(
  services: Services,
  { alias, model, digest }: Pick<CurrentAlias, 'alias' | 'model' | 'digest'>,
): Promise<ResolvedModel> {
  const names = digest === null ? [model] : [model, `${model}@${digest.slice(0, 12)}`];
  for (const name of names) {
    try {
      const found = await services.pool.resolve(name);
      if (found.digest === digest) return found;
    } catch (error) {
      if (!(error instanceof ApiError) || error.code !== 'model_not_found') throw error;
    }
  }
  const message = `The alias \`${alias}\` stands for a version of \`${model}\` that is not there any more. Promote another model, or roll the alias back.`;
  throw new ApiError(409, 'invalid_request_error', 'alias_target_missing', message, { param: 'model' });
}

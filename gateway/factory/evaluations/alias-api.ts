/** /api/aliases: names that stand for a model version. They move only by promotion on a report, back by rollback. */
import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import type { EvaluationScores } from '../../../daemon/protocol.ts';
import type { ResolvedModel } from '../../daemons/pool.ts';
import type { AliasVersionRow } from '../../db/schema.ts';
import { ApiError, badRequest } from '../../errors.ts';
import { readJsonObject } from '../../http/body.ts';
import { parseWith } from '../../http/validate.ts';
import { resolveFor } from '../../openai/run.ts';
import type { AppEnv, Services } from '../../services.ts';
import type { CurrentAlias } from './alias-rows.ts';
import { checkCriteria, criteria, criterionText, failureText } from './criteria.ts';
import { canUseAlias, promotedWeights } from './resolve.ts';

/** No colons and no @: an alias is never taken for a fine-tuned model or a kept version. */
const NAME = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$/;

export const promoteRequest = z
  .strictObject({
    model: z.string().min(1).max(256),
    /** Id of a report that has this model. */
    evaluation: z.string().min(1).max(64),
    criteria,
  })
  .openapi('PromoteRequest');

export const aliasView = z
  .object({
    object: z.literal('alias'),
    alias: z.string(),
    /** null in the history of an alias that was deleted. */
    model: z.string().nullable(),
    digest: z.string().nullable(),
    version: z.number().int(),
    action: z.enum(['promote', 'rollback', 'delete']),
    evaluation: z.string().nullable(),
    criteria: z.array(
      z.object({ criterion: z.string(), value: z.number().nullable(), bound: z.number().nullable(), met: z.boolean() }),
    ),
    created_at: z.number().int(),
  })
  .openapi('Alias');
export const aliasWithHistory = aliasView.extend({ history: z.array(aliasView) }).openapi('AliasWithHistory');

function view(row: AliasVersionRow): z.output<typeof aliasView> {
  const { alias, model, digest, version, action, evaluation, checks, createdAt } = row;
  return {
    object: 'alias',
    alias,
    model,
    digest,
    version,
    action,
    evaluation,
    criteria: checks.map(({ criterion, ...numbers }) => ({ criterion: criterionText(criterion), ...numbers })),
    created_at: Math.floor(createdAt / 1000),
  };
}

function nameOf(c: Context<AppEnv>): string {
  const alias = c.req.param('alias') ?? '';
  if (NAME.test(alias)) return alias;
  throw badRequest('alias', 'invalid_value', "Invalid 'alias': use letters, digits, . _ -; at most 64.");
}

function conflict(code: string, message: string, param: string | null = null): ApiError {
  return new ApiError(409, 'invalid_request_error', code, message, { param });
}

function noSuchAlias(alias: string): ApiError {
  return new ApiError(404, 'invalid_request_error', 'alias_not_found', `There is no alias \`${alias}\`.`, {
    param: 'alias',
  });
}

/** An alias belongs to whoever made it; admins may move all. For who may not even use it, it does not exist. */
async function checkOwner(services: Services, c: Context<AppEnv>, row: CurrentAlias): Promise<void> {
  const principal = c.get('principal');
  const { alias } = row;
  const owner = (await ownerOf(services, alias)) ?? row.owner;
  if (principal.scopes.has('admin') || owner === principal.ownerId) return;
  if (!(await canUseAlias(services, principal, row))) throw noSuchAlias(alias);
  throw new ApiError(403, 'permission_error', 'not_owner', `The alias \`${alias}\` was made by somebody else.`, {
    param: 'alias',
  });
}

async function ownerOf(services: Services, alias: string): Promise<string | null> {
  const rows = await services.aliases.history(alias);
  // Whoever made it after it was last deleted.
  let owner: string | null = null;
  for (const row of rows) {
    if (row.action === 'delete') break;
    owner = row.owner;
  }
  return owner;
}

/** @throws ApiError 404, 403 */
async function currentOf(services: Services, c: Context<AppEnv>, alias: string): Promise<CurrentAlias> {
  const row = await services.aliases.newest(alias);
  if (row === null || row.model === null) throw noSuchAlias(alias);
  await checkOwner(services, c, row as CurrentAlias);
  return row as CurrentAlias;
}

async function write(services: Services, row: Parameters<Services['aliases']['append']>[0]): Promise<AliasVersionRow> {
  const written = await services.aliases.append(row);
  if (written !== null) return written;
  throw conflict(
    'alias_changed',
    `The alias \`${row.alias}\` was changed by somebody else at the same moment. Look at it, and try again.`,
    'alias',
  );
}

export async function listAliases(services: Services, c: Context<AppEnv>): Promise<Response> {
  const principal = c.get('principal');
  const all = await services.aliases.list();
  const usable = await Promise.all(all.map((alias) => canUseAlias(services, principal, alias)));
  return c.json({ object: 'list', data: all.filter((_, index) => usable[index]).map(view) });
}

export async function getAlias(services: Services, c: Context<AppEnv>): Promise<Response> {
  const alias = nameOf(c);
  const row = await services.aliases.find(alias);
  if (row === null || !(await canUseAlias(services, c.get('principal'), row))) throw noSuchAlias(alias);
  return c.json({ ...view(row), history: (await services.aliases.history(alias)).map(view) });
}

export async function promoteAlias(services: Services, c: Context<AppEnv>): Promise<Response> {
  const alias = nameOf(c);
  const body = parseWith(promoteRequest, await readJsonObject(c.req.raw));
  // First of all: what is compared with is what stands here now, and only its next version is written.
  const newest = await services.aliases.newest(alias);
  const current = newest === null || newest.model === null ? null : (newest as CurrentAlias);
  if (current === null) await checkFree(services, alias);
  else await checkOwner(services, c, current);
  const model = await resolveFor(services, c.get('principal'), body.model);
  const evaluation = await services.evaluations.find(c.get('principal'), body.evaluation);
  if (evaluation === null) {
    const message = `There is no evaluation ${body.evaluation}.`;
    throw new ApiError(404, 'invalid_request_error', 'evaluation_not_found', message, { param: 'evaluation' });
  }
  const { report } = evaluation;
  if (report.baseDigest !== model.base.digest)
    throw conflict(
      'evaluation_outdated',
      `The evaluation ${evaluation.id} was made with another base model. Evaluate again.`,
      'evaluation',
    );
  const candidate = scoresOf(report.scores, model);
  if (candidate === null) {
    const replaced = report.scores.some((scores) => scores.model === model.adapter);
    throw conflict(
      replaced ? 'evaluation_outdated' : 'model_not_evaluated',
      replaced
        ? `The weights of \`${model.id}\` were replaced after the evaluation ${evaluation.id}. Evaluate again.`
        : `The evaluation ${evaluation.id} does not have \`${model.id}\`.`,
      'evaluation',
    );
  }
  const checks = checkCriteria(body.criteria, {
    candidate,
    base: report.scores.find((scores) => scores.model === null) ?? null,
    current:
      current === null ? null : (report.scores.find((scores) => scores.adapterDigest === current.digest) ?? null),
  });
  const failed = checks.filter(({ met }) => !met);
  if (failed.length > 0) {
    const told = failed.map(failureText).join('; ');
    throw conflict('criteria_not_met', `\`${model.id}\` was not promoted to \`${alias}\`: ${told}.`, 'criteria');
  }
  const version = (newest?.version ?? 0) + 1;
  const row = await write(services, {
    alias,
    version,
    action: 'promote',
    model: model.id,
    digest: model.digest,
    origin: version,
    parent: current?.origin ?? null,
    evaluation: evaluation.id,
    checks,
    keyId: c.get('principal').keyId,
    owner: c.get('principal').ownerId,
  });
  return c.json(view(row));
}

export async function rollbackAlias(services: Services, c: Context<AppEnv>): Promise<Response> {
  const alias = nameOf(c);
  const current = await currentOf(services, c, alias);
  const before = current.parent === null ? null : await services.aliases.version(alias, current.parent);
  if (before === null || before.model === null)
    throw conflict(
      'nothing_to_roll_back',
      `\`${alias}\` has stood for nothing before \`${current.model}\`. Delete it, or promote another model.`,
      'alias',
    );
  // What is not there any more must not be gone back to.
  await promotedWeights(services, { alias, model: before.model, digest: before.digest });
  const row = await write(services, {
    alias,
    version: current.version + 1,
    action: 'rollback',
    model: before.model,
    digest: before.digest,
    origin: before.origin,
    parent: before.parent,
    evaluation: before.evaluation,
    checks: before.checks,
    keyId: c.get('principal').keyId,
    owner: c.get('principal').ownerId,
  });
  return c.json(view(row));
}

export async function deleteAlias(services: Services, c: Context<AppEnv>): Promise<Response> {
  const alias = nameOf(c);
  const current = await currentOf(services, c, alias);
  const version = current.version + 1;
  const gone = { model: null, digest: null, evaluation: null, checks: [], parent: null };
  await write(services, {
    ...gone,
    alias,
    version,
    origin: version,
    action: 'delete',
    keyId: c.get('principal').keyId,
    owner: c.get('principal').ownerId,
  });
  return c.json({ alias, object: 'alias', deleted: true });
}

function scoresOf(scores: EvaluationScores[], model: ResolvedModel): EvaluationScores | null {
  return (
    scores.find((one) => (model.adapter === null ? one.model === null : one.adapterDigest === model.digest)) ?? null
  );
}

async function checkFree(services: Services, alias: string): Promise<void> {
  if ((await services.pool.models()).some(({ id }) => id === alias))
    throw conflict('name_taken', `\`${alias}\` is the name of a model; choose another for the alias.`, 'alias');
}

/** Before a model goes: an alias must not lose what it stands for unless that is what the caller says. */
export async function guardAliases(services: Services, c: Context<AppEnv>, model: string): Promise<void> {
  if (c.req.query('force') === 'true') return;
  const [alias] = await services.aliases.pointingTo(model);
  if (alias === undefined) return;
  throw conflict(
    'model_in_use',
    `The alias \`${alias}\` stands for \`${model}\`. Roll it back, promote another model or delete the alias first; with ?force=true it is done all the same.`,
    'model',
  );
}

/** A model must not take an alias's name: requests for it would get something else. */
export async function refuseAliasName(services: Services, name: string): Promise<void> {
  if ((await services.aliases.find(name)) !== null)
    throw conflict('name_taken', `\`${name}\` is an alias; choose another name.`, 'name');
}

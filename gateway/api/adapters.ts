/** /api/adapters: add (from a path, the hub, or an upload piped straight through), list, remove, pin, load. */

import { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import { type Adapter, adapterName } from '../../daemon/protocol.ts';
import { ApiError, badRequest, modelNotFound } from '../errors.ts';
import { guardAliases, refuseAliasName } from '../factory/evaluations/alias-api.ts';
import { modelOfCheckpoint } from '../factory/jobs/model-name.ts';
import { readJsonObject, tooLarge } from '../http/body.ts';
import { parseWith } from '../http/validate.ts';
import { limits } from '../limits.ts';
import { deleteAdapter } from '../openai/models.ts';
import type { AppEnv, Services } from '../services.ts';

export const adapterAdd = z
  .strictObject({ name: adapterName, source: z.string().min(1).max(4096), replace: z.boolean().default(false) })
  .openapi('AdapterAddRequest');

export const adapterView = z
  .looseObject({
    name: z.string(),
    digest: z.string(),
    rankMax: z.number(),
    targets: z.array(z.string()),
    bytes: z.number(),
    created: z.number(),
    tier: z.enum(['slot', 'host', 'disk']),
    pinned: z.boolean(),
    source: z.string(),
    marks: z.number().optional().openapi({ description: 'See GET /api/adapters/{name}/sources.' }),
  })
  .openapi('Adapter');

const HUB = /^hf:[\w.-]{1,96}\/[\w.-]{1,96}(@[\w.-]{1,96})?$/;

/** What the caller may see; where the files came from is the operator's business. */
function view(c: Context<AppEnv>, adapter: Adapter): Adapter {
  const operator = c.get('principal').scopes.has('admin');
  return operator || HUB.test(adapter.source) ? adapter : { ...adapter, source: 'local' };
}

async function checkName(services: Services, c: Context<AppEnv>, name: string): Promise<string> {
  const parsed = adapterName.safeParse(name);
  if (!parsed.success)
    throw badRequest('name', 'invalid_value', "Invalid 'name': use letters, digits, . _ : @ -; at most 128.");
  if (!(await services.factory.owners.canUse(c.get('principal'), name))) throw modelNotFound(name);
  return name;
}

export async function listAdapters(services: Services, c: Context<AppEnv>): Promise<Response> {
  const adapters = await services.pool.adapters();
  const usable = await services.factory.owners.usable(c.get('principal'), adapters, ({ name }) => name);
  const marks = await services.factory.sources.markCounts();
  const data = usable.map((adapter) => ({
    ...view(c, adapter),
    marks: marks.get(modelOfCheckpoint(adapter.name)) ?? 0,
  }));
  return c.json({ object: 'list', data });
}

export async function getAdapter(services: Services, c: Context<AppEnv>): Promise<Response> {
  const name = await checkName(services, c, c.req.param('name') ?? '');
  const adapter = (await services.pool.adapters()).find((one) => one.name === name);
  if (adapter === undefined) throw modelNotFound(name);
  const marks = await services.factory.sources.marksOf(modelOfCheckpoint(name));
  return c.json({ ...view(c, adapter), marks: marks.length });
}

export async function addAdapter(services: Services, c: Context<AppEnv>): Promise<Response> {
  const contentType = c.req.header('content-type') ?? '';
  const adapter = contentType.toLowerCase().startsWith('multipart/form-data')
    ? await upload(services, c, contentType)
    : await addFromSource(services, c);
  c.set('audit', { object: adapter.name, detail: { digest: adapter.digest } });
  return c.json(view(c, adapter), 201);
}

async function addFromSource(services: Services, c: Context<AppEnv>): Promise<Adapter> {
  const body = parseWith(adapterAdd, await readJsonObject(c.req.raw));
  await checkName(services, c, body.name);
  // A path names files of the server: reading them is for its operator.
  if (!HUB.test(body.source) && !c.get('principal').scopes.has('admin')) {
    throw new ApiError(
      403,
      'permission_error',
      'insufficient_scope',
      'Adapters from a path of the server need the scope `admin`; upload the files or use hf:owner/repo.',
      { param: 'source' },
    );
  }
  await refuseTakenName(services, c, body.name);
  const client = await services.pool.placement(body.name);
  try {
    return await client.addAdapter({ ...body, operator: c.get('principal').scopes.has('admin') });
  } finally {
    services.pool.invalidate();
  }
}

/**
 * The name is needed to choose the daemon and to check whose it is, and the body is not read here; so it stands in the query (`?name=`),
 * and the daemon takes it from there, whatever the form says.
 */
async function upload(services: Services, c: Context<AppEnv>, contentType: string): Promise<Adapter> {
  const declared = Number(c.req.header('content-length') ?? 0);
  if (declared > limits.uploadBytesMax) throw tooLarge(limits.uploadBytesMax);
  const given = c.req.query('name');
  const principal = c.get('principal');
  if (given === undefined && (!principal.scopes.has('admin') || services.pool.clients.length > 1)) {
    throw badRequest(
      'name',
      'missing_required_parameter',
      "Missing required parameter: 'name' (as ?name= in the address of an upload).",
    );
  }
  const name = given === undefined ? '' : await checkName(services, c, given);
  const { body } = c.req.raw;
  if (body === null) throw badRequest('files', 'missing_required_parameter', "Missing required parameter: 'files'.");
  const reader = body.getReader();
  let bytes = 0;
  let refused: unknown = null;
  // The daemon makes of it what it is when the end has come, so the end is held back until all was asked again: hours may have passed.
  let held: Uint8Array | null = null;
  const counted = new ReadableStream<Uint8Array>({
    async pull(controller) {
      try {
        for (;;) {
          const { value, done } = await reader.read();
          const ready = held;
          held = value ?? null;
          bytes += value?.byteLength ?? 0;
          if (bytes > limits.uploadBytesMax) throw tooLarge(limits.uploadBytesMax);
          if (done) {
            await services.people.recheck(principal, 'adapters');
            if (name !== '') await refuseTakenName(services, c, name);
          }
          if (ready !== null) controller.enqueue(ready);
          if (done) controller.close();
          if (done || ready !== null) return;
        }
      } catch (error) {
        refused = error;
        controller.error(error);
      }
    },
  });
  try {
    if (name !== '') await refuseTakenName(services, c, name);
    const client = await services.pool.placement(name);
    return await client.uploadAdapter(counted, contentType, c.req.raw.signal, name);
  } catch (error) {
    if (refused instanceof ApiError) throw refused;
    await readPast(reader);
    throw error;
  } finally {
    services.pool.invalidate();
  }
}

/**
 * Reads what still comes of a refused upload, so that the refusal can be read: many clients send all before they read, and a connection
 * that is closed meanwhile takes the answer with it, or breaks under the next request.
 */
async function readPast(reader: ReadableStreamDefaultReader<Uint8Array>): Promise<void> {
  const timer = setTimeout(() => reader.cancel().catch(() => {}), limits.refusedUploadMs);
  try {
    while (!(await reader.read()).done);
  } catch {
    // Whoever sent it is gone.
  } finally {
    clearTimeout(timer);
  }
}

async function checkMine(services: Services, c: Context<AppEnv>, name: string): Promise<void> {
  if (await services.factory.owners.canChange(c.get('principal'), name)) return;
  const message = `\`${name}\` was fine-tuned by another key; only that key and admins may replace or remove it.`;
  throw new ApiError(403, 'permission_error', 'not_owner', message, { param: 'name' });
}

async function refuseTakenName(services: Services, c: Context<AppEnv>, name: string): Promise<void> {
  await checkMine(services, c, name);
  await refuseAliasName(services, name);
  // What an alias stands for is not replaced by the way.
  await guardAliases(services, c, name);
  if ((await services.pool.models()).some((model) => model.adapter === null && model.id === name)) {
    throw new ApiError(409, 'invalid_request_error', 'name_taken', `\`${name}\` is the base model's name.`, {
      param: 'name',
    });
  }
}

export async function removeAdapter(services: Services, c: Context<AppEnv>): Promise<Response> {
  const name = await checkName(services, c, c.req.param('name') ?? '');
  await checkMine(services, c, name);
  await guardAliases(services, c, name);
  await deleteAdapter(services, name);
  return c.json({ name, deleted: true });
}

const ACTIONS = ['load', 'unload', 'pin', 'unpin'] as const;

export async function actOnAdapter(services: Services, c: Context<AppEnv>): Promise<Response> {
  const name = await checkName(services, c, c.req.param('name') ?? '');
  const action = ACTIONS.find((one) => one === c.req.param('action'));
  if (action === undefined)
    throw new ApiError(
      404,
      'invalid_request_error',
      'not_found',
      'Unknown action; there are load, unload, pin and unpin.',
    );
  c.set('audit', { detail: { action } });
  const holders = await services.pool.holders(name);
  let adapter: Adapter | undefined;
  try {
    for (const client of holders) adapter = await client.adapterAction(name, action);
  } finally {
    services.pool.invalidate();
  }
  return c.json(view(c, adapter as Adapter));
}

/** The table of routes: what each is called, who may call it, what it takes and gives. app.ts mounts it; /openapi.json is made of it. */
import { type OpenAPIHono, type RouteConfig, z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import { adapterCard, exportAdapter, exportQuery, getAdapterCard } from './api/adapter-export.ts';
import {
  actOnAdapter,
  adapterAdd,
  adapterView,
  addAdapter,
  getAdapter,
  listAdapters,
  removeAdapter,
} from './api/adapters.ts';
import {
  createKey,
  keyCreateRequest,
  keyPatchRequest,
  keysQuery,
  keyView,
  listKeys,
  patchKey,
  revokeKey,
} from './api/keys.ts';
import type { Access } from './auth/scopes.ts';
import { datanetRoutes } from './datanets/routes.ts';
import { evaluationRoutes } from './factory/evaluations/routes.ts';
import { factoryRoutes } from './factory/routes.ts';
import { pageView } from './http/pages.ts';
import { createChatCompletion } from './openai/chat.ts';
import { chatRequest } from './openai/chat-request.ts';
import { completionRequest } from './openai/completion-request.ts';
import { createCompletion } from './openai/completions.ts';
import { createEmbedding, embeddingRequest } from './openai/embeddings.ts';
import { deleteModel, getModel, listModelDetails, listModels } from './openai/models.ts';
import { type HealthSources, health } from './ops/health.ts';
import { INDEX_HTML } from './ops/index-page.ts';
import { getReceipt, logCheckpoint, logConsistency, logTile, logVkey } from './ops/log-proxy.ts';
import { mergeMetrics } from './ops/metrics.ts';
import { oidcRoutes } from './people/oidc/routes.ts';
import { organizationRoutes } from './people/organizations/routes.ts';
import { peopleRoutes } from './people/routes.ts';
import type { AppEnv, Services } from './services.ts';

export interface Route {
  method: 'get' | 'post' | 'put' | 'patch' | 'delete';
  /** OpenAPI form: /v1/models/{model}. */
  path: string;
  /** Hono's form, where it differs from the above. */
  pattern?: string;
  access: Access;
  tag: string;
  summary: string;
  query?: z.ZodObject;
  body?: z.ZodType;
  /** Media type of the body, if not JSON. */
  bodyMedia?: string;
  answer?: z.ZodType;
  /** Media type of the answer, if not JSON. */
  media?: string;
  /** `noun.verb`: the act is written into the audit log, before the handler begins and when it has ended. */
  audit?: string;
  /** One of the caller's requests per minute. Routes that compute count themselves, with their tokens. */
  counted?: true;
  status?: number;
  handler: (c: Context<AppEnv>) => Response | Promise<Response>;
}

const model = z
  .object({ id: z.string(), object: z.literal('model'), created: z.number(), owned_by: z.string() })
  .openapi('Model');
const list = (item: z.ZodType) => z.object({ object: z.literal('list'), data: z.array(item) });
const usage = z.looseObject({ prompt_tokens: z.number(), completion_tokens: z.number(), total_tokens: z.number() });
const generated = (object: string) =>
  z.looseObject({
    id: z.string(),
    object: z.literal(object),
    created: z.number(),
    model: z.string(),
    choices: z.array(z.looseObject({ index: z.number(), finish_reason: z.string() })),
    usage,
  });
const embeddings = z.object({
  object: z.literal('list'),
  model: z.string(),
  data: z.array(
    z.object({
      object: z.literal('embedding'),
      index: z.number(),
      embedding: z.union([z.array(z.number()), z.string()]),
    }),
  ),
  usage: z.object({ prompt_tokens: z.number(), total_tokens: z.number() }),
});
const receiptBundle = z
  .object({
    entry: z.string(),
    leafIndex: z.number(),
    inclusionProof: z.array(z.string()),
    checkpoint: z.string(),
    vkey: z.string(),
  })
  .openapi('ReceiptBundle');
const error = z
  .object({
    error: z.object({
      message: z.string(),
      type: z.string(),
      param: z.string().nullable(),
      code: z.string().nullable(),
    }),
  })
  .openapi('ErrorResponse');

export function routesOf(services: Services, options: { health: HealthSources; openapi: () => unknown }): Route[] {
  const s = services;
  const openai = 'OpenAI';
  const manage = 'Management';
  const log = 'Receipts';
  const ops = 'Operations';
  return [
    {
      method: 'get',
      path: '/',
      access: 'public',
      tag: ops,
      summary: 'Start page',
      media: 'text/html',
      handler: (c) => c.html(INDEX_HTML),
    },
    {
      method: 'post',
      path: '/v1/chat/completions',
      access: 'inference',
      tag: openai,
      summary: 'Chat, streamed or whole',
      body: chatRequest,
      answer: generated('chat.completion'),
      handler: (c) => createChatCompletion(s, c),
    },
    {
      method: 'post',
      path: '/v1/completions',
      access: 'inference',
      tag: openai,
      summary: 'Plain text completion (legacy)',
      body: completionRequest,
      answer: generated('text_completion'),
      handler: (c) => createCompletion(s, c),
    },
    {
      method: 'post',
      path: '/v1/embeddings',
      access: 'inference',
      tag: openai,
      summary: 'Embeddings',
      body: embeddingRequest,
      answer: embeddings,
      handler: (c) => createEmbedding(s, c),
    },
    {
      method: 'get',
      path: '/v1/models',
      access: 'any',
      tag: openai,
      summary: 'Models this key may use',
      answer: list(model),
      handler: (c) => listModels(s, c),
    },
    {
      method: 'get',
      path: '/v1/models/{model}',
      access: 'any',
      tag: openai,
      summary: 'One model',
      answer: model,
      handler: (c) => getModel(s, c),
    },
    {
      method: 'delete',
      path: '/v1/models/{model}',
      access: 'any',
      tag: openai,
      audit: 'model.delete',
      summary: 'Delete a fine-tuned model of this key (scope `fine_tuning`), or any adapter (scope `adapters`)',
      handler: (c) => deleteModel(s, c),
    },
    ...factoryRoutes(s),
    ...evaluationRoutes(s),
    ...datanetRoutes(s),
    ...peopleRoutes(s),
    ...oidcRoutes(s),
    ...organizationRoutes(s),
    {
      method: 'get',
      path: '/v1/receipts/{id}',
      access: 'any',
      tag: log,
      summary: 'Receipt, inclusion proof and checkpoint',
      answer: receiptBundle,
      handler: (c) => getReceipt(s, c),
    },
    {
      method: 'get',
      path: '/log/checkpoint',
      access: 'public',
      tag: log,
      summary: 'Signed checkpoint',
      media: 'text/plain',
      handler: (c) => logCheckpoint(s, c),
    },
    {
      method: 'get',
      path: '/log/vkey',
      access: 'public',
      tag: log,
      summary: 'Verifier key',
      media: 'text/plain',
      handler: (c) => logVkey(s, c),
    },
    {
      method: 'get',
      path: '/log/consistency',
      access: 'public',
      tag: log,
      summary: 'Consistency proof between two tree sizes (?from=&to=; without `to`, up to now)',
      handler: (c) => logConsistency(s, c),
    },
    {
      method: 'get',
      path: '/log/tile/{tile}',
      pattern: '/log/tile/*',
      access: 'public',
      tag: log,
      summary: 'C2SP tile',
      media: 'application/octet-stream',
      handler: (c) => logTile(s, c),
    },
    {
      method: 'get',
      path: '/api/keys',
      access: 'keys',
      tag: manage,
      summary: 'List keys: one’s own; for admins, all (?user_id= filters)',
      query: keysQuery,
      answer: pageView(keyView),
      handler: (c) => listKeys(s, c),
    },
    {
      method: 'post',
      path: '/api/keys',
      access: 'keys',
      tag: manage,
      audit: 'key.create',
      summary: 'Make a key; the answer is the only place it is shown',
      body: keyCreateRequest,
      answer: keyView.extend({ key: z.string() }),
      status: 201,
      handler: (c) => createKey(s, c),
    },
    {
      method: 'patch',
      path: '/api/keys/{id}',
      access: 'keys',
      tag: manage,
      audit: 'key.update',
      summary: 'Change name and limits',
      body: keyPatchRequest,
      answer: keyView,
      handler: (c) => patchKey(s, c),
    },
    {
      method: 'delete',
      path: '/api/keys/{id}',
      access: 'keys',
      tag: manage,
      audit: 'key.revoke',
      summary: 'Revoke, effective at once',
      answer: keyView,
      handler: (c) => revokeKey(s, c),
    },
    {
      method: 'get',
      path: '/api/models',
      access: 'any',
      tag: manage,
      summary: 'Base model and adapters, in detail',
      handler: (c) => listModelDetails(s, c),
    },
    {
      method: 'get',
      path: '/api/adapters',
      access: 'adapters',
      tag: manage,
      summary: 'List adapters',
      answer: list(adapterView),
      handler: (c) => listAdapters(s, c),
    },
    {
      method: 'post',
      path: '/api/adapters',
      access: 'adapters',
      tag: manage,
      audit: 'adapter.add',
      summary: 'Add an adapter: JSON, or multipart/form-data with ?name=',
      body: adapterAdd,
      answer: adapterView,
      status: 201,
      handler: (c) => addAdapter(s, c),
    },
    {
      method: 'get',
      path: '/api/adapters/{name}',
      access: 'adapters',
      tag: manage,
      summary: 'One adapter',
      answer: adapterView,
      handler: (c) => getAdapter(s, c),
    },
    {
      method: 'delete',
      path: '/api/adapters/{name}',
      access: 'adapters',
      tag: manage,
      audit: 'adapter.remove',
      summary: 'Remove an adapter',
      handler: (c) => removeAdapter(s, c),
    },
    {
      method: 'get',
      path: '/api/adapters/{name}/export',
      access: 'any',
      tag: manage,
      summary:
        'Take out an adapter of this key, or any (scope `adapters`): ?format=peft (.tar), gguf (LoRA) or merged (a model)',
      query: exportQuery,
      media: 'application/octet-stream',
      handler: (c) => exportAdapter(s, c),
    },
    {
      method: 'get',
      path: '/api/adapters/{name}/card',
      access: 'any',
      tag: manage,
      summary: 'Model card: base, recipe, data, metrics, evaluations, hashes',
      answer: adapterCard,
      handler: (c) => getAdapterCard(s, c),
    },
    {
      method: 'post',
      path: '/api/adapters/{name}/{action}',
      access: 'adapters',
      tag: manage,
      audit: 'adapter.place',
      summary: 'load, unload, pin or unpin',
      answer: adapterView,
      handler: (c) => actOnAdapter(s, c),
    },
    {
      method: 'get',
      path: '/health',
      access: 'public',
      tag: ops,
      summary: 'Gateway, daemons and supervisor',
      handler: (c) => health(s, options.health, c),
    },
    {
      method: 'get',
      path: '/metrics',
      access: 'metrics',
      tag: ops,
      summary: 'Prometheus metrics of gateway and daemons',
      media: 'text/plain',
      handler: (c) => metrics(s, c),
    },
    {
      method: 'get',
      path: '/openapi.json',
      access: 'public',
      tag: ops,
      summary: 'This description',
      handler: (c) => c.json(options.openapi() as object),
    },
  ];
}

async function metrics(services: Services, c: Context<AppEnv>): Promise<Response> {
  const daemons = await Promise.all(
    services.pool.clients.map((client) =>
      client
        .send('GET', '/metrics', { signal: AbortSignal.timeout(2_000) })
        .then((response) => response.text())
        .catch(() => null),
    ),
  );
  return c.text(mergeMetrics(await services.metrics.registry.metrics(), daemons), 200, {
    'content-type': services.metrics.registry.contentType,
  });
}

export function honoPath(route: Route): string {
  return route.pattern ?? route.path.replaceAll(/\{(\w+)\}/g, ':$1');
}

/** Writes the table into the app's OpenAPI registry. */
export function describe(app: OpenAPIHono<AppEnv>, routes: Route[]): void {
  app.openAPIRegistry.registerComponent('securitySchemes', 'key', {
    type: 'http',
    scheme: 'bearer',
    description: 'An API key, mf-…',
  });
  app.openAPIRegistry.registerComponent('securitySchemes', 'session', {
    type: 'apiKey',
    in: 'cookie',
    name: 'mf_session',
    description: 'A browser’s session; whatever changes something also needs its x-csrf-token.',
  });
  const failure = { description: 'Any failure', content: { 'application/json': { schema: error } } };
  for (const route of routes) {
    const names = [...route.path.matchAll(/\{(\w+)\}/g)].map((match) => match[1] as string);
    const media = route.media ?? 'application/json';
    const content = {
      [media]: { schema: route.answer ?? (media === 'application/json' ? z.looseObject({}) : z.string()) },
    };
    app.openAPIRegistry.registerPath({
      method: route.method,
      path: route.path,
      summary: route.summary,
      tags: [route.tag],
      ...(route.access === 'public'
        ? {}
        : {
            security: [{ key: [] }, { session: [] }],
            description: route.access === 'any' ? 'Any valid key or session.' : `Scope: ${route.access}.`,
          }),
      request: {
        ...(names.length === 0
          ? {}
          : { params: z.object(Object.fromEntries(names.map((name) => [name, z.string()]))) }),
        ...(route.body === undefined
          ? {}
          : { body: { required: true, content: { [route.bodyMedia ?? 'application/json']: { schema: route.body } } } }),
        ...(route.query === undefined ? {} : { query: route.query }),
      },
      responses: { [route.status ?? 200]: { description: 'Good', content }, default: failure },
    } as RouteConfig);
  }
}

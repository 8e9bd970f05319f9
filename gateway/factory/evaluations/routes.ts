/** The routes of evaluations, graders and aliases; part of the table in ../../routes.ts. */
import { z } from '@hono/zod-openapi';
import type { Route } from '../../routes.ts';
import type { Services } from '../../services.ts';
import {
  aliasView,
  aliasWithHistory,
  deleteAlias,
  getAlias,
  listAliases,
  promoteAlias,
  promoteRequest,
  rollbackAlias,
} from './alias-api.ts';
import {
  createEvaluation,
  evaluationBody,
  evaluationsQuery,
  evaluationView,
  getEvaluation,
  listEvaluations,
} from './api.ts';
import {
  graderRunAnswer,
  graderRunBody,
  graderValidateAnswer,
  graderValidateBody,
  runGrader,
  validateGrader,
} from './grader-api.ts';

/** Those that do not compute count as requests; the others count themselves. */
export function evaluationRoutes(s: Services): Route[] {
  const computing = new Set(['/api/evaluations', '/v1/fine_tuning/alpha/graders/run']);
  return uncounted(s).map((route) =>
    route.method === 'post' && computing.has(route.path) ? route : { ...route, counted: true },
  );
}

function uncounted(s: Services): Route[] {
  const access = 'fine_tuning' as const;
  const evaluations = 'Evaluations';
  const aliases = 'Aliases';
  return [
    {
      method: 'post',
      path: '/api/evaluations',
      access,
      tag: evaluations,
      summary:
        'Evaluate models side by side on a file; with `stream`, progress as server-sent events and the report last',
      body: evaluationBody,
      answer: evaluationView,
      handler: (c) => createEvaluation(s, c),
    },
    {
      method: 'get',
      path: '/api/evaluations',
      access,
      tag: evaluations,
      summary: 'List reports, newest first',
      query: evaluationsQuery,
      answer: z.object({ object: z.literal('list'), data: z.array(evaluationView), has_more: z.boolean() }),
      handler: (c) => listEvaluations(s, c),
    },
    {
      method: 'get',
      path: '/api/evaluations/{id}',
      access,
      tag: evaluations,
      summary: 'One report',
      answer: evaluationView,
      handler: (c) => getEvaluation(s, c),
    },
    {
      method: 'post',
      path: '/v1/fine_tuning/alpha/graders/run',
      access,
      tag: evaluations,
      summary: 'Run a grader (string_check, text_similarity, score_model) on one answer',
      body: graderRunBody,
      answer: graderRunAnswer,
      handler: (c) => runGrader(s, c),
    },
    {
      method: 'post',
      path: '/v1/fine_tuning/alpha/graders/validate',
      access,
      tag: evaluations,
      summary: 'Validate a grader',
      body: graderValidateBody,
      answer: graderValidateAnswer,
      handler: (c) => validateGrader(s, c),
    },
    {
      method: 'get',
      path: '/api/aliases',
      access: 'any',
      tag: aliases,
      summary: 'Aliases this key may use, and what each stands for',
      answer: z.object({ object: z.literal('list'), data: z.array(aliasView) }),
      handler: (c) => listAliases(s, c),
    },
    {
      method: 'get',
      path: '/api/aliases/{alias}',
      access: 'any',
      tag: aliases,
      summary: 'One alias with its history, newest first',
      answer: aliasWithHistory,
      handler: (c) => getAlias(s, c),
    },
    {
      method: 'post',
      path: '/api/aliases/{alias}/promote',
      access,
      tag: aliases,
      audit: 'alias.promote',
      summary: 'Let an alias stand for a model, if the stated criteria hold on the report; 409 with the numbers if not',
      body: promoteRequest,
      answer: aliasView,
      handler: (c) => promoteAlias(s, c),
    },
    {
      method: 'post',
      path: '/api/aliases/{alias}/rollback',
      access,
      tag: aliases,
      audit: 'alias.rollback',
      summary: 'Let an alias stand for what it stood for before',
      answer: aliasView,
      handler: (c) => rollbackAlias(s, c),
    },
    {
      method: 'delete',
      path: '/api/aliases/{alias}',
      access,
      tag: aliases,
      audit: 'alias.delete',
      summary: 'Delete an alias; the model stays',
      answer: z.object({ alias: z.string(), object: z.literal('alias'), deleted: z.boolean() }),
      handler: (c) => deleteAlias(s, c),
    },
  ];
}

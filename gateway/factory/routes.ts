/** The routes of files, data sets and fine-tuning; part of the table in ../routes.ts. */
import { z } from '@hono/zod-openapi';
import { pageView } from '../http/pages.ts';
import type { Route } from '../routes.ts';
import type { Services } from '../services.ts';
import { inspectAnswer, inspectDataset, inspectRequest } from './datasets/inspect.ts';
import { createFile, deleteFile, fileContent, fileQuery, fileView, getFile, listFiles } from './files/api.ts';
import { uploadForm } from './files/upload.ts';
import { actOnJob, checkpointsQuery, createJob, getJob, jobsQuery, listCheckpoints, listJobs } from './jobs/api.ts';
import { eventsQuery, listEvents } from './jobs/events.ts';
import {
  createPermissions,
  deletePermission,
  listPermissions,
  permissionsQuery,
  permissionsRequest,
} from './jobs/permissions.ts';
import { jobRequest } from './jobs/request.ts';
import { checkpointView, eventView, jobView, permissionView } from './jobs/view.ts';
import { adapterSources, adapterSourcesView } from './mixtures/api.ts';

const listOf = (item: z.ZodType) => z.object({ object: z.literal('list'), data: z.array(item), has_more: z.boolean() });
const deleted = (object: string) => z.object({ id: z.string(), object: z.literal(object), deleted: z.boolean() });

/** All of them count as requests: none is limited by the tokens that it generates. */
export function factoryRoutes(s: Services): Route[] {
  return uncounted(s).map((route) => ({ ...route, counted: true }));
}

function uncounted(s: Services): Route[] {
  const access = 'fine_tuning' as const;
  const files = 'Files';
  const tuning = 'Fine-tuning';
  const job = '/v1/fine_tuning/jobs/{id}';
  const permissions = '/v1/fine_tuning/checkpoints/{checkpoint}/permissions';
  return [
    {
      method: 'post',
      path: '/v1/files',
      access,
      tag: files,
      summary: 'Upload a file (multipart/form-data), at most 512 MB',
      body: uploadForm,
      bodyMedia: 'multipart/form-data',
      answer: fileView,
      handler: (c) => createFile(s, c),
    },
    {
      method: 'get',
      path: '/v1/files',
      access,
      tag: files,
      summary: 'List files',
      query: fileQuery,
      answer: pageView(fileView),
      handler: (c) => listFiles(s, c),
    },
    {
      method: 'get',
      path: '/v1/files/{id}',
      access,
      tag: files,
      summary: 'One file',
      answer: fileView,
      handler: (c) => getFile(s, c),
    },
    {
      method: 'delete',
      path: '/v1/files/{id}',
      access,
      tag: files,
      summary: 'Delete a file',
      answer: deleted('file'),
      handler: (c) => deleteFile(s, c),
    },
    {
      method: 'get',
      path: '/v1/files/{id}/content',
      access,
      tag: files,
      summary: 'The bytes of a file',
      media: 'application/octet-stream',
      handler: (c) => fileContent(s, c),
    },
    {
      method: 'post',
      path: '/api/datasets/inspect',
      access,
      tag: files,
      summary: 'Validate a file as a data set; statistics, and an estimate of time, memory and cost',
      body: inspectRequest,
      answer: inspectAnswer,
      handler: (c) => inspectDataset(s, c),
    },
    {
      method: 'post',
      path: '/v1/fine_tuning/jobs',
      access,
      tag: tuning,
      summary: 'Create a fine-tuning job',
      body: jobRequest,
      answer: jobView,
      handler: (c) => createJob(s, c),
    },
    {
      method: 'get',
      path: '/v1/fine_tuning/jobs',
      access,
      tag: tuning,
      summary: 'List jobs, newest first (metadata[k]=v and metadata=null filter)',
      query: jobsQuery,
      answer: listOf(jobView),
      handler: (c) => listJobs(s, c),
    },
    {
      method: 'get',
      path: job,
      access,
      tag: tuning,
      summary: 'One job',
      answer: jobView,
      handler: (c) => getJob(s, c),
    },
    ...(['cancel', 'pause', 'resume'] as const).map(
      (action): Route => ({
        method: 'post',
        path: `${job}/${action}`,
        access,
        tag: tuning,
        summary: { cancel: 'Cancel a job', pause: 'Pause a job', resume: 'Resume a paused job' }[action],
        answer: jobView,
        handler: (c) => actOnJob(s, c, action),
      }),
    ),
    {
      method: 'get',
      path: `${job}/events`,
      access,
      tag: tuning,
      summary: 'Events, newest first; with ?stream=true live over SSE, oldest first, until the job ends',
      query: eventsQuery,
      answer: listOf(eventView),
      handler: (c) => listEvents(s, c),
    },
    {
      method: 'get',
      path: `${job}/checkpoints`,
      access,
      tag: tuning,
      summary: 'Checkpoints, newest first; each can be used as a model while its state is `available`',
      query: checkpointsQuery,
      answer: pageView(checkpointView),
      handler: (c) => listCheckpoints(s, c),
    },
    {
      method: 'get',
      path: '/api/adapters/{name}/sources',
      access: 'any',
      tag: tuning,
      summary:
        'What an adapter was trained on: Datanets, versions, roots, contributors; and marks of what became of it',
      answer: adapterSourcesView,
      handler: (c) => adapterSources(s, c),
    },
    {
      method: 'get',
      path: permissions,
      access: 'admin',
      tag: tuning,
      summary: 'Keys and users that may use a checkpoint besides its owner',
      query: permissionsQuery,
      answer: pageView(permissionView),
      handler: (c) => listPermissions(s, c),
    },
    {
      method: 'post',
      path: permissions,
      access: 'admin',
      tag: tuning,
      audit: 'permission.create',
      summary: 'Let others (project_ids = ids of keys or users) use a checkpoint',
      body: permissionsRequest,
      answer: pageView(permissionView),
      handler: (c) => createPermissions(s, c),
    },
    {
      method: 'delete',
      path: `${permissions}/{id}`,
      access: 'admin',
      tag: tuning,
      audit: 'permission.delete',
      summary: 'Take a permission back',
      answer: deleted('checkpoint.permission'),
      handler: (c) => deletePermission(s, c),
    },
  ];
}

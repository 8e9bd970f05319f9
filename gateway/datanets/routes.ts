/** The routes of Datanets; part of the table in ../routes.ts. */
import { z } from '@hono/zod-openapi';
import { pageView } from '../http/pages.ts';
import type { Route } from '../routes.ts';
import type { Services } from '../services.ts';
import { accessRoutes } from './access/routes.ts';
import {
  createDatanet,
  datanetCreateRequest,
  datanetPatchRequest,
  datanetsQuery,
  datanetVkey,
  getDatanet,
  listDatanets,
  patchDatanet,
} from './api.ts';
import {
  contributionsQuery,
  contributionView,
  createContribution,
  deleteContribution,
  getContribution,
  listContributions,
} from './contributions/api.ts';
import { contributionForm } from './contributions/upload.ts';
import { reviewAnswer, reviewRequest, reviewRows } from './review/api.ts';
import { getRow, getStatistics, listRows, rowsQuery, rowView, statisticsQuery, statisticsView } from './rows/api.ts';
import { searchAnswer, searchQuery, searchRows } from './search/api.ts';
import { versionRoutes } from './versions/routes.ts';
import { datanetSummary, datanetView } from './view.ts';

export function datanetRoutes(s: Services): Route[] {
  const tag = 'Datanets';
  const one = '/api/datanets/{id}';
  const contribution = `${one}/contributions/{contribution}`;
  return [
    {
      method: 'post',
      path: '/api/datanets',
      access: 'govern',
      audit: 'datanet.create',
      tag,
      summary: 'Make a Datanet that belongs to the caller, or to an organisation they own',
      body: datanetCreateRequest,
      answer: datanetView,
      status: 201,
      handler: (c) => createDatanet(s, c),
    },
    {
      method: 'get',
      path: '/api/datanets',
      access: 'datanets',
      tag,
      summary: 'Datanets the caller may see, newest first; `q` searches their words',
      query: datanetsQuery,
      answer: pageView(datanetSummary),
      handler: (c) => listDatanets(s, c),
    },
    {
      method: 'get',
      path: '/api/datanets/vkey',
      access: 'public',
      tag,
      summary: 'Verifier key of rows and of the checkpoints of versions',
      media: 'text/plain',
      handler: (c) => datanetVkey(s, c),
    },
    {
      method: 'get',
      path: one,
      access: 'datanets',
      tag,
      summary: 'One Datanet, with what the caller may do',
      answer: datanetView,
      handler: (c) => getDatanet(s, c),
    },
    {
      method: 'patch',
      path: one,
      access: 'govern',
      audit: 'datanet.update',
      tag,
      summary: 'Change it; the name is fixed once published, licence and terms change for new versions',
      body: datanetPatchRequest,
      answer: datanetView,
      handler: (c) => patchDatanet(s, c),
    },
    {
      method: 'post',
      path: `${one}/contributions`,
      access: 'contribute',
      audit: 'contribution.create',
      tag,
      summary: 'Contribute a file (multipart/form-data, at most 512 MB), or rows as JSON {"rows": […], "licence": …}',
      body: contributionForm,
      bodyMedia: 'multipart/form-data',
      answer: contributionView,
      status: 202,
      handler: (c) => createContribution(s, c),
    },
    {
      method: 'get',
      path: `${one}/contributions`,
      access: 'datanets',
      tag,
      summary: 'Contributions, newest first: all for those who govern, else one’s own',
      query: contributionsQuery,
      answer: pageView(contributionView),
      handler: (c) => listContributions(s, c),
    },
    {
      method: 'get',
      path: contribution,
      access: 'datanets',
      tag,
      summary: 'One contribution: how far it is, what was refused and why',
      answer: contributionView,
      handler: (c) => getContribution(s, c),
    },
    {
      method: 'delete',
      path: contribution,
      access: 'contribute',
      audit: 'contribution.delete',
      tag,
      summary: 'Take one’s contribution back, while nothing of it is published',
      answer: z.object({ id: z.string(), object: z.literal('datanet.contribution'), deleted: z.boolean() }),
      handler: (c) => deleteContribution(s, c),
    },
    {
      method: 'get',
      path: `${one}/rows`,
      access: 'datanets',
      tag,
      summary: 'Rows the caller may see, newest first',
      query: rowsQuery,
      answer: pageView(rowView),
      handler: (c) => listRows(s, c),
    },
    {
      method: 'get',
      path: `${one}/rows/{row}`,
      access: 'datanets',
      tag,
      summary: 'One row',
      answer: rowView,
      handler: (c) => getRow(s, c),
    },
    {
      method: 'get',
      path: `${one}/search`,
      access: 'datanets',
      tag,
      summary: 'Full-text search over the rows the caller may read',
      query: searchQuery,
      answer: searchAnswer,
      handler: (c) => searchRows(s, c),
    },
    {
      method: 'get',
      path: `${one}/statistics`,
      access: 'datanets',
      tag,
      summary: 'Rows by state, score and language; for readers, of the newest version',
      query: statisticsQuery,
      answer: statisticsView,
      handler: (c) => getStatistics(s, c),
    },
    {
      method: 'post',
      path: `${one}/review`,
      access: 'govern',
      audit: 'datanet.review',
      tag,
      summary: 'Approve or reject pending rows, by name or by filter',
      body: reviewRequest,
      answer: reviewAnswer,
      handler: (c) => reviewRows(s, c),
    },
    ...versionRoutes(s),
    ...accessRoutes(s),
  ];
}

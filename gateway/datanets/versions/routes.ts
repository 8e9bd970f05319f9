/** The routes of versions, withdrawals and exports; part of the table in ../routes.ts. */
import { pageView } from '../../http/pages.ts';
import type { Route } from '../../routes.ts';
import type { Services } from '../../services.ts';
import { exportQuery, exportVersion } from '../exports/api.ts';
import { rowView } from '../rows/api.ts';
import {
  differenceQuery,
  differenceView,
  getDifference,
  getRowProof,
  getVersion,
  listVersionRows,
  listVersions,
  publishRequest,
  publishVersion,
  rowProof,
  versionRowsQuery,
  versionsQuery,
  withdrawalRequest,
  withdrawalView,
  withdrawRows,
} from './api.ts';
import { versionView } from './view.ts';

export function versionRoutes(s: Services): Route[] {
  const tag = 'Versions of Datanets';
  const versions = '/api/datanets/{id}/versions';
  const version = `${versions}/{version}`;
  return [
    {
      method: 'post',
      path: versions,
      access: 'govern',
      audit: 'datanet.publish',
      tag,
      summary: 'Publish a version: all approved rows that are in none yet join those of the version before',
      body: publishRequest,
      answer: versionView,
      status: 201,
      handler: (c) => publishVersion(s, c),
    },
    {
      method: 'get',
      path: versions,
      access: 'datanets',
      tag,
      summary: 'Versions, newest first',
      query: versionsQuery,
      answer: pageView(versionView),
      handler: (c) => listVersions(s, c),
    },
    {
      method: 'get',
      path: version,
      access: 'datanets',
      tag,
      summary: 'One version: statistics, Merkle root, signed checkpoint, licence',
      answer: versionView,
      handler: (c) => getVersion(s, c),
    },
    {
      method: 'get',
      path: `${version}/rows`,
      access: 'datanets',
      tag,
      summary: 'Rows of a version in the order of its tree',
      query: versionRowsQuery,
      answer: pageView(rowView),
      handler: (c) => listVersionRows(s, c),
    },
    {
      method: 'get',
      path: `${version}/rows/{row}/proof`,
      access: 'datanets',
      tag,
      summary: 'Proof that a row is in a version; `modelfactory verify` checks it',
      answer: rowProof,
      handler: (c) => getRowProof(s, c),
    },
    {
      method: 'get',
      path: `${version}/diff/{other}`,
      access: 'datanets',
      tag,
      summary: 'What another version has and lacks, compared with this one',
      query: differenceQuery,
      answer: differenceView,
      handler: (c) => getDifference(s, c),
    },
    {
      method: 'get',
      path: `${version}/export`,
      access: 'datanets',
      tag,
      summary: 'A version as JSONL (uploads to /v1/files take it back), CSV, or Croissant 1.1 with PROV',
      query: exportQuery,
      media: 'application/octet-stream',
      handler: (c) => exportVersion(s, c),
    },
    {
      method: 'post',
      path: '/api/datanets/{id}/withdrawals',
      access: 'contribute',
      audit: 'datanet.withdraw',
      tag,
      summary: 'Take rows out: a new version without them, and marks on what was trained on them',
      body: withdrawalRequest,
      answer: withdrawalView,
      handler: (c) => withdrawRows(s, c),
    },
  ];
}

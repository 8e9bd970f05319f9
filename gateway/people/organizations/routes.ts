/** The routes of organisations; part of the table in ../../routes.ts. */
import { pageView } from '../../http/pages.ts';
import type { Route } from '../../routes.ts';
import type { Services } from '../../services.ts';
import {
  createOrganization,
  getMember,
  getOrganization,
  listMembers,
  listOrganizations,
  memberRequest,
  membersQuery,
  memberView,
  organizationDetail,
  organizationRequest,
  organizationsQuery,
  organizationView,
  putMember,
  removeMember,
  renameOrganization,
} from './api.ts';

export function organizationRoutes(s: Services): Route[] {
  const tag = 'Organisations';
  const one = '/api/organizations/{id}';
  const member = `${one}/members/{user}`;
  return [
    {
      method: 'post',
      path: '/api/organizations',
      access: 'govern',
      audit: 'organization.create',
      tag,
      summary: 'Make an organisation; the caller becomes its owner',
      body: organizationRequest,
      answer: organizationDetail,
      status: 201,
      handler: (c) => createOrganization(s, c),
    },
    {
      method: 'get',
      path: '/api/organizations',
      access: 'datanets',
      tag,
      summary: 'Organisations of the caller (scope `people`: all), newest first',
      query: organizationsQuery,
      answer: pageView(organizationView),
      handler: (c) => listOrganizations(s, c),
    },
    {
      method: 'get',
      path: one,
      access: 'datanets',
      tag,
      summary: 'One organisation',
      answer: organizationDetail,
      handler: (c) => getOrganization(s, c),
    },
    {
      method: 'patch',
      path: one,
      access: 'govern',
      audit: 'organization.rename',
      tag,
      summary: 'Rename (owners); organisations are never deleted, since what they own and approved stays on record',
      body: organizationRequest,
      answer: organizationDetail,
      handler: (c) => renameOrganization(s, c),
    },
    {
      method: 'get',
      path: `${one}/members`,
      access: 'datanets',
      tag,
      summary: 'Its members, newest first',
      query: membersQuery,
      answer: pageView(memberView),
      handler: (c) => listMembers(s, c),
    },
    {
      method: 'get',
      path: member,
      access: 'datanets',
      tag,
      summary: 'One member: by user id, by e-mail (owners), or `me`',
      answer: memberView,
      handler: (c) => getMember(s, c),
    },
    {
      method: 'put',
      path: member,
      access: 'govern',
      audit: 'organization.member.put',
      tag,
      summary: 'Add a user (by id or e-mail), or change a member’s role (owners)',
      body: memberRequest,
      answer: memberView,
      handler: (c) => putMember(s, c),
    },
    {
      method: 'delete',
      path: member,
      access: 'datanets',
      audit: 'organization.member.remove',
      tag,
      summary: 'Leave (`me`), or take a member out (owners); the last owner stays',
      handler: (c) => removeMember(s, c),
    },
  ];
}

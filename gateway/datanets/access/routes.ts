/** The routes of access to Datanets; part of the table in ../routes.ts. */
import { pageView } from '../../http/pages.ts';
import type { Route } from '../../routes.ts';
import type { Services } from '../../services.ts';
import { acceptance, acceptanceView, acceptLicence, getLicenceAcceptance } from './licence-api.ts';
import {
  accessQuery,
  accessRequest,
  accessView,
  approval,
  createAccessRequest,
  decideAccess,
  getAccessRequest,
  listAccessRequests,
  refusal,
} from './requests-api.ts';
import { revocation, revocationView, setRevoked } from './revocation-api.ts';

export function accessRoutes(s: Services): Route[] {
  const tag = 'Access to Datanets';
  const datanet = '/api/datanets/{id}';
  const requests = `${datanet}/access-requests`;
  return [
    {
      method: 'post',
      path: requests,
      access: 'datanets',
      audit: 'access.request',
      tag,
      summary: 'Ask for access to a permissioned Datanet, for oneself or an organisation',
      body: accessRequest,
      answer: accessView,
      status: 201,
      handler: (c) => createAccessRequest(s, c),
    },
    {
      method: 'get',
      path: requests,
      access: 'datanets',
      tag,
      summary: 'Requests for access: all of them for whoever governs, else one’s own',
      query: accessQuery,
      answer: pageView(accessView),
      handler: (c) => listAccessRequests(s, c),
    },
    {
      method: 'get',
      path: `${requests}/{acc}`,
      access: 'datanets',
      tag,
      summary: 'One request for access',
      answer: accessView,
      handler: (c) => getAccessRequest(s, c),
    },
    {
      method: 'post',
      path: `${requests}/{acc}/approve`,
      access: 'govern',
      audit: 'access.approve',
      tag,
      summary: 'Give access, until `expires_at` if that is said',
      body: approval,
      answer: accessView,
      handler: (c) => decideAccess(s, c, 'approve'),
    },
    ...(['reject', 'revoke'] as const).map(
      (name): Route => ({
        method: 'post',
        path: `${requests}/{acc}/${name}`,
        access: 'govern',
        audit: `access.${name}`,
        tag,
        summary:
          name === 'reject' ? 'Refuse a request' : 'Take access back: what has not begun to train does not begin',
        body: refusal,
        answer: accessView,
        handler: (c) => decideAccess(s, c, name),
      }),
    ),
    {
      method: 'get',
      path: `${datanet}/licence-acceptance`,
      access: 'datanets',
      tag,
      summary: 'Licence and terms as they are now, and whether the caller agreed to them',
      answer: acceptanceView,
      handler: (c) => getLicenceAcceptance(s, c),
    },
    {
      method: 'post',
      path: `${datanet}/licence-acceptance`,
      access: 'datanets',
      audit: 'licence.accept',
      tag,
      summary: 'Agree to licence and terms as they are now',
      body: acceptance,
      answer: acceptanceView,
      handler: (c) => acceptLicence(s, c),
    },
    ...([true, false] as const).map(
      (revoked): Route => ({
        method: 'post',
        path: `${datanet}/${revoked ? 'revoke' : 'reactivate'}`,
        access: 'govern',
        audit: revoked ? 'datanet.revoke' : 'datanet.reactivate',
        tag,
        summary: revoked
          ? 'Revoke a Datanet: nothing new is trained on it, and adapters that were are marked'
          : 'Make a revoked Datanet active again; marks stay',
        body: revocation,
        answer: revocationView,
        handler: (c) => setRevoked(s, c, revoked),
      }),
    ),
  ];
}

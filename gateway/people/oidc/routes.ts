/** The routes of logging in through an OpenID provider; part of the table in ../../routes.ts. */
import { z } from '@hono/zod-openapi';
import type { Route } from '../../routes.ts';
import type { Services } from '../../services.ts';
import {
  callbackQuery,
  finishOidc,
  identityView,
  linkRequest,
  linkStarted,
  listIdentities,
  startLink,
  startOidc,
  startQuery,
  unlinkIdentity,
  unlinkQuery,
} from './api.ts';

export function oidcRoutes(s: Services): Route[] {
  const tag = 'Account';
  const link = '/api/session/oidc/link';
  return [
    {
      method: 'get',
      path: '/api/session/oidc',
      access: 'public',
      tag,
      summary: 'Log in through the OpenID provider: redirects there; ?return_to= says which page of ours comes after',
      query: startQuery,
      media: 'text/plain',
      status: 302,
      handler: (c) => startOidc(s, c),
    },
    {
      method: 'get',
      path: '/api/session/oidc/callback',
      access: 'public',
      audit: 'session.oidc',
      tag,
      summary: 'Where the provider sends the browser back to: sets the session cookie and redirects',
      query: callbackQuery,
      media: 'text/plain',
      status: 303,
      handler: (c) => finishOidc(s, c),
    },
    {
      method: 'get',
      path: link,
      access: 'account',
      tag,
      summary: 'Log-ins at the OpenID provider that are linked to one’s account',
      answer: z.object({ object: z.literal('list'), data: z.array(identityView), has_more: z.literal(false) }),
      handler: (c) => listIdentities(s, c),
    },
    {
      method: 'post',
      path: link,
      access: 'account',
      audit: 'identity.link',
      tag,
      summary: 'Link a log-in at the provider to the account of this session: the answer says where the browser goes',
      body: linkRequest,
      answer: linkStarted,
      handler: (c) => startLink(s, c),
    },
    {
      method: 'delete',
      path: link,
      access: 'account',
      audit: 'identity.unlink',
      tag,
      summary: 'Unlink a log-in (?issuer=&subject=), unless it is the only way into the account',
      query: unlinkQuery,
      handler: (c) => unlinkIdentity(s, c),
    },
  ];
}

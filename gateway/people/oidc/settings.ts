/** What the gateway is told of the OpenID provider; read from the environment by readConfig. */
import { ROLES, type Role } from '../../db/people-schema.ts';

/** Signatures by a key pair. Never `none`, never HS*: with those whoever knows a public key, or nothing, could write tokens. */
const ALGORITHMS = [
  'RS256',
  'RS384',
  'RS512',
  'PS256',
  'PS384',
  'PS512',
  'ES256',
  'ES384',
  'ES512',
  'EdDSA',
  'Ed25519',
] as const;
export const ALGORITHMS_DEFAULT: readonly string[] = ['RS256', 'PS256', 'ES256', 'EdDSA'];

export interface OidcSettings {
  /** As the provider writes it into its tokens, to the letter. */
  issuer: string;
  clientId: string;
  /** null: a public client, which proves itself by PKCE alone. */
  clientSecret: string | null;
  /** What whoever logs in and was not invited becomes; null: they are refused. */
  role: Role | null;
  /** Of ID tokens. */
  algorithms: readonly string[];
  /** Origin at which browsers reach the gateway; the provider sends them back there. */
  publicUrl: string;
}

const LOOPBACK = /^(localhost|127(\.\d{1,3}){3}|\[::1\])$/;

/** HTTPS, or this very machine. */
export function isTrustedUrl(text: string): boolean {
  if (text.length > 2048 || !URL.canParse(text)) return false;
  const url = new URL(text);
  if (url.username !== '' || url.password !== '' || url.hash !== '') return false;
  return url.protocol === 'https:' || (url.protocol === 'http:' && LOOPBACK.test(url.hostname));
}

type Fail = (message: string) => Error;

/** Null where no issuer is set. @param fail makes the error for a setting that cannot be. */
export function readOidcSettings(
  env: Record<string, string | undefined>,
  publicUrl: string | null,
  fail: Fail,
): OidcSettings | null {
  const issuer = env.MODELFACTORY_OIDC_ISSUER || '';
  if (issuer === '') return null;
  if (!isTrustedUrl(issuer) || new URL(issuer).search !== '')
    throw fail(
      `MODELFACTORY_OIDC_ISSUER must be an https URL such as https://id.example.org (http only on this machine), but is "${issuer}".`,
    );
  const clientId = env.MODELFACTORY_OIDC_CLIENT_ID || '';
  if (clientId === '')
    throw fail('MODELFACTORY_OIDC_CLIENT_ID is missing: the id under which the provider knows this gateway.');
  if (publicUrl === null)
    throw fail(
      'MODELFACTORY_PUBLIC_URL is missing: with MODELFACTORY_OIDC_ISSUER it must say where browsers reach the gateway, since the provider sends them back to PUBLIC_URL/api/session/oidc/callback.',
    );
  if (!isTrustedUrl(publicUrl))
    throw fail(
      `MODELFACTORY_PUBLIC_URL must be https (http only on this machine) to log in through a provider, but is "${publicUrl}".`,
    );
  const algorithms = (env.MODELFACTORY_OIDC_ALGORITHMS || ALGORITHMS_DEFAULT.join(',')).split(',').map((s) => s.trim());
  const bad = algorithms.find((one) => !(ALGORITHMS as readonly string[]).includes(one));
  if (bad !== undefined) throw fail(`MODELFACTORY_OIDC_ALGORITHMS holds "${bad}"; there are ${ALGORITHMS.join(', ')}.`);
  return {
    issuer,
    clientId,
    clientSecret: env.MODELFACTORY_OIDC_CLIENT_SECRET || null,
    role: roleOf(env.MODELFACTORY_OIDC_ROLE || null, fail),
    algorithms,
    publicUrl,
  };
}

function roleOf(text: string | null, fail: Fail): Role | null {
  if (text === null) return null;
  // Whoever has an account at the provider would be an administrator.
  const roles = ROLES.filter((role) => role !== 'admin');
  const role = roles.find((one) => one === text);
  if (role === undefined) throw fail(`MODELFACTORY_OIDC_ROLE must be ${roles.join(', ')} or unset, but is "${text}".`);
  return role;
}

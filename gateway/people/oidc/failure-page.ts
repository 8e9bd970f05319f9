/** What a person sees in the browser whom the provider sent back and who could not be let in: why, and the way to begin anew. */
import { createHash } from 'node:crypto';
import type { ApiError } from '../../errors.ts';

const STYLE = 'body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:4rem auto;padding:0 1rem}';
/** Nothing is loaded, run, framed or sent from this page; its one style is known by its hash. */
const POLICY = `default-src 'none'; style-src 'sha256-${createHash('sha256').update(STYLE).digest('base64')}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`;

const ENTITIES: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' };

function escaped(text: string): string {
  return text.replaceAll(/[&<>"']/g, (sign) => ENTITIES[sign] as string);
}

/** Whether whoever asks would rather read a page than JSON: browsers name text/html, programs do not. */
export function wantsPage(accept: string | undefined): boolean {
  return (accept ?? '').split(',').some((part) => {
    const [type = '', ...parameters] = part.split(';').map((piece) => piece.trim().toLowerCase());
    return type === 'text/html' && !parameters.some((parameter) => /^q=0(\.0*)?$/.test(parameter));
  });
}

/** Only what the error tells any client, and the id by which the log finds the rest. */
export function failurePage(error: ApiError, requestId: string): Response {
  const html = `<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>Not logged in</title><style>${STYLE}</style></head>
<body>
<main>
<h1>You are not logged in</h1>
<p>${escaped(error.message)}</p>
<p><a href="/api/session/oidc">Log in again</a> or go to the <a href="/">start page</a>.</p>
<p><small>${escaped(error.code ?? error.type)}, request ${escaped(requestId)}</small></p>
</main>
</body>
</html>
`;
  const headers = new Headers(error.headers);
  headers.set('content-type', 'text/html; charset=utf-8');
  headers.set('content-security-policy', POLICY);
  return new Response(html, { status: error.status, headers });
}

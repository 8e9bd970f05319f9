/** Writes docs/api.md from the gateway's table of routes: `node --import tsx bin/api-doc.ts`. */
import { writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { routesOf } from '../gateway/routes.ts';
import type { Services } from '../gateway/services.ts';

const WHO: Record<string, string> = {
  public: 'everybody',
  any: 'any key or session',
  metrics: '`metrics`; everybody on this machine, see [settings](operating.md)',
};

export function apiDoc(): string {
  // The table is only read: no handler runs, so nothing that they would need is there.
  const routes = routesOf({} as Services, {
    health: { version: '', startedAt: 0, database: async () => {}, supervisor: async () => null },
    openapi: () => ({}),
  });
  const tags = [...new Set(routes.map(({ tag }) => tag))];
  const sections = tags.map((tag) => {
    const rows = routes
      .filter((route) => route.tag === tag)
      .map(({ method, path, summary, access }) => {
        return `| \`${method.toUpperCase()} ${path}\` | ${summary} | ${WHO[access] ?? `\`${access}\``} |`;
      });
    return [`## ${tag}`, '| address | what | for the scope |', '|---|---|---|', ...rows].join('\n');
  });
  return `${[
    '# API',
    '<!-- Written by bin/api-doc.ts; a test compares. -->',
    '`GET /openapi.json` of a running server describes every field (OpenAPI 3.1). Requests carry `Authorization: Bearer KEY`, or in a\nbrowser the session cookie of `POST /api/session` and, where something is changed, its token as `x-csrf-token`. The scope `admin` includes all\nothers; `GET /api/roles` says which scopes each role of users has.',
    'Errors have the body `{"error": {"message", "type", "param", "code"}}`. Every answer has an `x-request-id`; answers of models also have\n`x-receipt-id` and `x-ratelimit-*`. A stream that fails after it has begun ends with one `data:` line that holds such an error body.',
    ...sections,
  ].join('\n\n')}\n`;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  writeFileSync(join(resolve(import.meta.dirname, '..'), 'docs', 'api.md'), apiDoc());
}

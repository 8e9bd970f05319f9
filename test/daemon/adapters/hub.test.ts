import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { MockAgent } from 'undici';
import { afterEach, describe, expect, test } from 'vitest';
import { AdapterError } from '../../../daemon/adapters/errors.ts';
import { type HubOptions, hubFiles, parseHubSource } from '../../../daemon/adapters/hub.ts';

const COMMIT = '0123456789abcdef0123456789abcdef01234567';
const servers: Server[] = [];
afterEach(async () => {
  for (const server of servers.splice(0)) {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  }
});

type Answer = (request: IncomingMessage, response: ServerResponse) => void;
async function serve(answer: Answer): Promise<{ endpoint: string; asked: IncomingMessage[] }> {
  const asked: IncomingMessage[] = [];
  const server = createServer((request, response) => {
    asked.push(request);
    answer(request, response);
  });
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return { endpoint: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, asked };
}

const source = { repository: 'owner/repo', revision: 'main' };
const quick = { headersMs: 500, idleMs: 500 };

async function fetchAll(
  options: HubOptions,
  from = source,
): Promise<{ files: Record<string, string>; commit: string }> {
  const files: Record<string, string> = {};
  let commit = '';
  for await (const { name, content } of hubFiles(from, { ...quick, ...options }, (found) => (commit = found))) {
    const parts: Uint8Array[] = [];
    for await (const part of content) parts.push(part);
    files[name] = Buffer.concat(parts).toString();
  }
  return { files, commit };
}
async function refusal(work: Promise<unknown>): Promise<string> {
  try {
    await work;
    return 'accepted';
  } catch (error) {
    if (error instanceof AdapterError) return `${error.reason}: ${error.message}`;
    throw error;
  }
}
const good: Answer = (request, response) => {
  response.setHeader('x-repo-commit', COMMIT);
  response.end(request.url?.endsWith('.json') ? '{"config":1}' : 'weights');
};

describe('a source', () => {
  test('is owner/repo with or without a revision', () => {
    expect(parseHubSource('hf:owner/repo')).toEqual({ repository: 'owner/repo', revision: 'main' });
    expect(parseHubSource('hf:o-1/r.2_x@refs/pr/3')).toEqual({ repository: 'o-1/r.2_x', revision: 'refs/pr/3' });
    expect(parseHubSource('/some/folder')).toBeNull();
  });
  test.each([
    'hf:',
    'hf:repo',
    'hf:../x',
    'hf:a/../b',
    'hf:a/b/c',
    'hf:a/b@',
    'hf:a/b@../x',
    'hf:a/b?x=1',
    'hf:a/b#c',
    'hf:http://x/y',
    'hf:a%2f/b',
    'hf:a/b@x y',
  ])('%s is refused', (text) => {
    expect(() => parseHubSource(text)).toThrow(AdapterError);
  });
});

test('both files come from one commit, even if the branch moves between them', async () => {
  const { endpoint, asked } = await serve(good);
  const { files, commit } = await fetchAll({ endpoint });
  expect(files).toEqual({ 'adapter_config.json': '{"config":1}', 'adapter_model.safetensors': 'weights' });
  expect(commit).toBe(COMMIT);
  expect(asked.map(({ url }) => url)).toEqual([
    '/owner/repo/resolve/main/adapter_config.json',
    `/owner/repo/resolve/${COMMIT}/adapter_model.safetensors`,
  ]);
});

test('the token goes to the endpoint', async () => {
  const { endpoint, asked } = await serve(good);
  await fetchAll({ endpoint, token: 'hf_secret' });
  expect(asked.map(({ headers }) => headers.authorization)).toEqual(['Bearer hf_secret', 'Bearer hf_secret']);
});

test('a redirect within the endpoint is followed', async () => {
  const { endpoint } = await serve((request, response) => {
    if (request.url?.startsWith('/moved/')) return good(request, response);
    response.writeHead(302, { location: `/moved${request.url}` }).end();
  });
  expect((await fetchAll({ endpoint })).files['adapter_model.safetensors']).toBe('weights');
});

test("the hub's own storage is followed to, without the token", async () => {
  const agent = new MockAgent();
  agent.disableNetConnect();
  const tokens: unknown[] = [];
  const remember = ({ headers }: { headers?: unknown }): string => {
    tokens.push((headers as Record<string, string>).authorization);
    return 'stored';
  };
  for (const file of ['adapter_config.json', 'adapter_model.safetensors']) {
    const location = `https://cdn-lfs.hf.co/${file}?signature=1`;
    agent
      .get('https://huggingface.co')
      .intercept({ path: `/owner/repo/resolve/main/${file}` })
      .reply(302, '', { headers: { location } });
    agent
      .get('https://cdn-lfs.hf.co')
      .intercept({ path: `/${file}?signature=1` })
      .reply(200, remember);
  }
  const { files } = await fetchAll({ token: 'hf_secret', dispatcher: agent });
  expect(files['adapter_model.safetensors']).toBe('stored');
  expect(tokens).toEqual([undefined, undefined]);
  await agent.close();
});

test('a redirect to any other machine is not followed: what a user names cannot reach the network inside', async () => {
  const inner = await serve(good);
  for (const location of [
    `${inner.endpoint}/x`,
    'http://169.254.169.254/latest/meta-data',
    'https://huggingface.co.evil.example/x',
    'https://evilhf.co/x',
    'http://cdn.huggingface.co/x',
    'https://cdn.huggingface.co:8443/x',
    'https://user@cdn.huggingface.co/x',
    'file:///etc/passwd',
    'https://[',
  ]) {
    const { endpoint } = await serve((_request, response) => response.writeHead(302, { location }).end());
    expect(await refusal(fetchAll({ endpoint, token: 'hf_secret' }))).toMatch(/source_unreachable: .*not its own/);
  }
  expect(inner.asked).toHaveLength(0);
});

test('redirects without end are given up', async () => {
  const { endpoint, asked } = await serve((request, response) =>
    response.writeHead(302, { location: `${request.url}x` }).end(),
  );
  expect(await refusal(fetchAll({ endpoint }))).toMatch(/redirects too often/);
  expect(asked.length).toBeLessThan(10);
});

describe('what goes wrong is told', () => {
  test.each([
    [404, /source_invalid: .*no adapter_config\.json/],
    [401, /source_invalid: .*HF_TOKEN/],
    [403, /source_invalid: .*HF_TOKEN/],
    [500, /source_unreachable: .*500/],
    [429, /source_unreachable: .*429/],
  ])('status %i', async (status, sentence) => {
    const { endpoint } = await serve((_request, response) => response.writeHead(status).end('no'));
    expect(await refusal(fetchAll({ endpoint }))).toMatch(sentence);
  });

  test('a repository without safetensors', async () => {
    const { endpoint } = await serve((request, response) =>
      request.url?.endsWith('.json') ? good(request, response) : response.writeHead(404).end(),
    );
    expect(await refusal(fetchAll({ endpoint }))).toMatch(/source_invalid: .*no adapter_model\.safetensors/);
  });

  test('nobody there, nobody answering, silence in the middle, an early end', async () => {
    const { endpoint } = await serve(good);
    servers.at(-1)?.close();
    servers.at(-1)?.closeAllConnections();
    expect(await refusal(fetchAll({ endpoint }))).toMatch(/source_unreachable/);

    const silent = await serve(() => {});
    expect(await refusal(fetchAll({ endpoint: silent.endpoint }))).toMatch(/source_unreachable/);

    const stalls = await serve((_request, response) => {
      response.writeHead(200, { 'content-length': '1000' });
      response.write('x');
    });
    expect(await refusal(fetchAll({ endpoint: stalls.endpoint }))).toMatch(/source_unreachable: .*broke off/);

    const short = await serve((_request, response) => {
      response.writeHead(200, { 'content-length': '1000' });
      response.write('x', () => response.destroy());
    });
    expect(await refusal(fetchAll({ endpoint: short.endpoint }))).toMatch(/source_unreachable/);
  });

  test('a download that takes too long in all', async () => {
    const { endpoint } = await serve((_request, response) => {
      response.writeHead(200);
      const timer = setInterval(() => response.write('x'), 20);
      response.on('close', () => clearInterval(timer));
    });
    expect(await refusal(fetchAll({ endpoint, totalMs: 300 }))).toMatch(/source_unreachable/);
  });

  test('an endpoint that is no address', async () => {
    expect(await refusal(fetchAll({ endpoint: 'ftp://x' }))).toMatch(/HF_ENDPOINT/);
    expect(await refusal(fetchAll({ endpoint: 'hub' }))).toMatch(/HF_ENDPOINT/);
  });
});

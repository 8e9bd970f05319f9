import type { IncomingMessage } from 'node:http';
import busboy from 'busboy';
import { Hono } from 'hono';
import type { AdapterRegistry } from './adapters/registry.ts';
import type { IncomingFile } from './adapters/store.ts';
import type { EngineClient } from './engine/client.ts';
import { DaemonError } from './errors.ts';
import { SERVER_LIMITS } from './limits.ts';
import { type Adapter, adapterAddRequest, adapterName } from './protocol.ts';
import { type DaemonEnv, parse, readJson } from './server.ts';

/** Adapters over HTTP: what there is, and adding, removing, moving it while everything runs. */
export function adapterRoutes(registry: AdapterRegistry, engine: EngineClient): Hono<DaemonEnv> {
  const app = new Hono<DaemonEnv>();
  const known = (name: string): Adapter => {
    const adapter = registry.get(name);
    if (adapter === undefined)
      throw new DaemonError(
        'model_not_found',
        `there is no adapter named ${JSON.stringify(name.slice(0, 128))}`,
        'model',
      );
    return adapter;
  };

  app.get('/adapters', (c) => c.json({ data: registry.list() }));
  app.post('/adapters', async (c) => {
    const name = c.req.query('name');
    const type = c.req.header('content-type') ?? '';
    if (type.startsWith('multipart/form-data')) return c.json(await upload(c.env.incoming, name, registry));
    const body = await readJson(c, SERVER_LIMITS.bodyBytesMax);
    const named = name === undefined || typeof body !== 'object' ? body : { ...body, name };
    return c.json(await registry.add(parse(adapterAddRequest, named)));
  });
  app.get('/adapters/:name', (c) => c.json(known(c.req.param('name'))));
  app.delete('/adapters/:name', async (c) => {
    const name = c.req.param('name');
    await registry.remove(name);
    return c.json({ name, deleted: true });
  });
  app.post('/adapters/:name/load', async (c) => {
    const name = c.req.param('name');
    await engine.move(await registry.handle(name), 'slot');
    return c.json(known(name));
  });
  app.post('/adapters/:name/unload', async (c) => {
    const name = c.req.param('name');
    await engine.move(await registry.handle(name), 'disk');
    return c.json(known(name));
  });
  app.post('/adapters/:name/pin', async (c) => {
    const name = c.req.param('name');
    // The engine first: it knows whether one more can be pinned.
    await engine.pin(registry.digestOf(name), true);
    return c.json(await registry.pin(name, true));
  });
  app.post('/adapters/:name/unpin', async (c) => c.json(await registry.pin(c.req.param('name'), false)));
  return app;
}

/** Takes the files of a form as they come, without holding them in memory. The field `name` comes before the files. */
async function upload(
  request: IncomingMessage,
  queryName: string | undefined,
  registry: AdapterRegistry,
): Promise<Adapter> {
  const fields = new Map<string, string>();
  const files = new FileQueue();
  let form: busboy.Busboy;
  try {
    form = busboy({
      headers: request.headers,
      limits: { fileSize: SERVER_LIMITS.uploadBytesMax + 1, fields: 16, fieldSize: 4096, files: 64, parts: 128 },
    });
  } catch (error) {
    throw new DaemonError('invalid_request_error', `the form can't be read: ${(error as Error).message}`);
  }
  form.on('field', (key, value) => fields.set(key, value));
  form.on('file', (_field, stream, info) => {
    // Whoever reads the file hears of the error; without a listener it would end the process.
    stream.on('error', () => {});
    files.push({ name: info.filename ?? 'file', content: stream });
  });
  form.on('close', () => files.end());
  form.on('error', (error) =>
    files.fail(new DaemonError('invalid_request_error', `the form is broken: ${(error as Error).message}`)),
  );
  request.on('aborted', () => files.fail(new DaemonError('cancelled', 'the upload was broken off')));
  request.on('error', () => files.fail(new DaemonError('cancelled', 'the upload was broken off')));
  request.pipe(form);
  try {
    const first = await files.peek();
    const name = queryName ?? fields.get('name');
    if (first === null) throw new DaemonError('invalid_request_error', 'the form has no files', 'files');
    if (name === undefined)
      throw new DaemonError('invalid_request_error', 'the field name must come before the files', 'name');
    const request = { name: parse(adapterName, name), replace: fields.get('replace') === 'true', source: 'upload' };
    return await registry.addFiles(request, files);
  } catch (error) {
    // What still comes is read past, so that the answer can be read by who is still sending.
    request.unpipe(form);
    request.resume();
    throw error;
  }
}

/** Files of a form, in order; the next one is only read once the one before is done. */
class FileQueue implements AsyncIterable<IncomingFile> {
  private readonly files: IncomingFile[] = [];
  private ended = false;
  private error: Error | null = null;
  private wake: () => void = () => {};

  push(file: IncomingFile): void {
    this.files.push(file);
    this.wake();
  }
  end(): void {
    this.ended = true;
    this.wake();
  }
  fail(error: Error): void {
    this.error ??= error;
    for (const { content } of this.files) (content as unknown as { destroy?(error: Error): void }).destroy?.(error);
    this.wake();
  }
  /** The first file, once it begins; null if there is none. */
  async peek(): Promise<IncomingFile | null> {
    for (;;) {
      if (this.error !== null) throw this.error;
      const [first] = this.files;
      if (first !== undefined) return first;
      if (this.ended) return null;
      await new Promise<void>((resolve) => {
        this.wake = resolve;
      });
    }
  }
  async *[Symbol.asyncIterator](): AsyncIterator<IncomingFile> {
    for (;;) {
      const file = await this.peek();
      if (file === null) return;
      yield file;
      this.files.shift();
    }
  }
}

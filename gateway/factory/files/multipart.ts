/** Reads the multipart body of an upload: small fields are kept, the one file goes chunk by chunk into whatever takes it. */
import { Readable } from 'node:stream';
import type { ReadableStream as NodeReadableStream } from 'node:stream/web';
import busboy from 'busboy';
import { ApiError, badRequest } from '../../errors.ts';
import { limits } from '../../limits.ts';

export interface Sink {
  write(chunk: Uint8Array): Promise<void>;
}

export interface Form {
  fields: Map<string, string>;
  filename: string | null;
}

function tooLarge(): ApiError {
  const message = `The file is larger than ${limits.fileBytesMax} bytes (512 MB), the most a file may be. Split it.`;
  return new ApiError(413, 'invalid_request_error', 'file_too_large', message, { param: 'file' });
}

function notAForm(cause?: unknown): ApiError {
  const message = 'Send the file as multipart/form-data with the fields `file` and `purpose`.';
  return new ApiError(400, 'invalid_request_error', 'invalid_form', message, { cause });
}

/** @throws ApiError when the form is none, too large, broken off, or stands still for `idleMs`; what `sink.write` throws. */
export async function readForm(
  request: Request,
  sinkFor: () => Promise<Sink>,
  idleMs: number = limits.fileIdleMs,
): Promise<Form> {
  const contentType = request.headers.get('content-type') ?? '';
  if (!/^multipart\/form-data\b/i.test(contentType) || request.body === null) throw notAForm();
  if (Number(request.headers.get('content-length') ?? 0) > limits.fileBytesMax + 4 * limits.formFieldBytesMax) {
    await readPast(request.body);
    throw tooLarge();
  }
  const parser = open(contentType);
  const form: Form = { fields: new Map(), filename: null };
  const writing: Promise<void>[] = [];
  let failure: unknown;
  const fail = (error: unknown) => {
    failure ??= error;
  };

  parser.on('field', (name, value, info) => {
    if (info.valueTruncated || info.nameTruncated)
      fail(badRequest(name.slice(0, 64), 'string_above_max_length', `The field '${name.slice(0, 64)}' is too long.`));
    else if (name !== 'file') form.fields.set(name, value);
    else fail(badRequest('file', 'invalid_type', "Invalid 'file': it must be a file, with a filename."));
  });
  parser.on('file', (name, stream, info) => {
    // An error of the parser reaches its streams too; it is told once, below.
    stream.on('error', () => {});
    if (name !== 'file' || form.filename !== null) {
      fail(
        badRequest(
          name.slice(0, 64),
          'unknown_parameter',
          `Unknown file field: '${name.slice(0, 64)}'. Send one \`file\`.`,
        ),
      );
      stream.resume();
      return;
    }
    form.filename = info.filename ?? '';
    writing.push(pour(stream as Readable & { truncated?: boolean }, sinkFor).catch(fail));
  });
  parser.on('fieldsLimit', () => fail(badRequest(null, 'invalid_form', 'The form has too many fields.')));
  parser.on('partsLimit', () => fail(badRequest(null, 'invalid_form', 'The form has too many fields.')));
  parser.on('filesLimit', () => fail(badRequest('file', 'invalid_form', 'Send one file at a time.')));

  const done = new Promise<void>((resolve) => {
    parser.on('close', resolve);
    parser.on('error', (error) => {
      fail(
        new ApiError(400, 'invalid_request_error', 'invalid_form', 'The multipart form is broken or cut off.', {
          cause: error,
        }),
      );
      resolve();
    });
  });
  const body = Readable.fromWeb(request.body as unknown as NodeReadableStream);
  body.on('error', (cause) => {
    fail(
      new ApiError(400, 'invalid_request_error', 'body_incomplete', 'The upload broke off before its end.', { cause }),
    );
    parser.destroy(new Error('the body broke off'));
  });
  // Whoever sends nothing more must not hold a draft and a connection for ever.
  const stalled = () => {
    const message = `Nothing more of the upload came for ${idleMs / 1000} seconds. Send it again.`;
    fail(new ApiError(408, 'invalid_request_error', 'upload_stalled', message));
    body.destroy(new Error('the upload stands still'));
  };
  const idle = setTimeout(stalled, idleMs);
  body.on('data', () => idle.refresh());
  body.pipe(parser);
  await done;
  clearTimeout(idle);
  await Promise.all(writing);
  if (failure !== undefined) throw failure;
  return form;
}

function open(contentType: string): busboy.Busboy {
  try {
    return busboy({
      headers: { 'content-type': contentType },
      defParamCharset: 'utf8',
      limits: {
        fieldSize: limits.formFieldBytesMax,
        fields: limits.formFieldsMax,
        files: 2,
        fileSize: limits.fileBytesMax + 1,
        parts: limits.formFieldsMax + 2,
      },
    });
  } catch (error) {
    throw notAForm(error);
  }
}

async function pour(stream: Readable & { truncated?: boolean }, sinkFor: () => Promise<Sink>): Promise<void> {
  try {
    const sink = await sinkFor();
    // The parser waits for its stream to be read to the end, so a failed write must not destroy it.
    for await (const chunk of stream.iterator({ destroyOnReturn: false })) await sink.write(chunk as Uint8Array);
  } catch (error) {
    // The rest is read past, so that the refusal can be read by clients that send all before they look.
    stream.resume();
    throw error;
  }
  if (stream.truncated === true) throw tooLarge();
}

async function readPast(body: ReadableStream<Uint8Array>): Promise<void> {
  const reader = body.getReader();
  const timer = setTimeout(() => void reader.cancel().catch(() => {}), limits.refusedUploadMs);
  try {
    while (!(await reader.read()).done);
  } catch {
    // Whoever sent it is gone.
  } finally {
    clearTimeout(timer);
  }
}

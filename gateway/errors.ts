/**
 * The gateway's one error type and the one place that turns it into HTTP.
 * The body is OpenAI's: {"error": {message, type, param, code}}, all four keys always present.
 */
import { sqliteCode } from '../daemon/db/busy.ts';
import type { DaemonErrorBody } from '../daemon/protocol.ts';

export type ErrorType =
  | 'invalid_request_error'
  | 'authentication_error'
  | 'permission_error'
  | 'rate_limit_error'
  | 'insufficient_quota'
  | 'server_error';

export interface ErrorBody {
  error: { message: string; type: string; param: string | null; code: string | null };
}

export class ApiError extends Error {
  readonly status: number;
  readonly type: string;
  readonly code: string | null;
  readonly param: string | null;
  readonly headers: Record<string, string>;
  /** The daemon may or may not have computed something: only its log can tell what it cost. */
  readonly outcomeUnknown: boolean;

  constructor(
    status: number,
    type: ErrorType | (string & {}),
    code: string | null,
    message: string,
    options: {
      param?: string | null;
      headers?: Record<string, string>;
      cause?: unknown;
      outcomeUnknown?: boolean;
    } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'ApiError';
    this.status = status;
    this.type = type;
    this.code = code;
    this.param = options.param ?? null;
    this.headers = options.headers ?? {};
    this.outcomeUnknown = options.outcomeUnknown ?? false;
  }

  body(): ErrorBody {
    return { error: { message: this.message, type: this.type, param: this.param, code: this.code } };
  }
}

export function badRequest(param: string | null, code: string | null, message: string): ApiError {
  return new ApiError(400, 'invalid_request_error', code, message, { param });
}

export function modelNotFound(model: string): ApiError {
  const message = `The model \`${model}\` does not exist or this key may not use it. GET /v1/models lists what it may use.`;
  return new ApiError(404, 'invalid_request_error', 'model_not_found', message, { param: 'model' });
}

export function engineUnavailable(retryAfterSeconds: number, cause?: unknown): ApiError {
  const message = 'No inference engine is ready. It may be starting or restarting; try again shortly.';
  const headers = { 'retry-after': String(retryAfterSeconds) };
  return new ApiError(503, 'server_error', 'engine_unavailable', message, { headers, cause });
}

export function engineFailed(cause?: unknown): ApiError {
  const message = 'The inference engine stopped before the answer was complete. Send the request again.';
  return new ApiError(502, 'server_error', 'engine_failed', message, { cause, outcomeUnknown: true });
}

export function clientGone(): ApiError {
  return new ApiError(499, 'invalid_request_error', 'client_disconnected', 'The client closed the connection.');
}

/** Params of the protocol in the words of the OpenAI API. */
const PARAMS: Record<string, string> = {
  adapter: 'model',
  maxTokens: 'max_tokens',
  responseFormat: 'response_format',
  topLogprobs: 'top_logprobs',
  'sampling.logitBias': 'logit_bias',
};

/** What the daemon refused or failed at, as the client sees it. Its 401 and 403 are ours to fix, not the client's. */
export function fromDaemon(error: DaemonErrorBody['error'], retryAfterSeconds: number): ApiError {
  if (error.status === 401 || error.status === 403)
    return engineUnavailable(retryAfterSeconds, new Error(error.message));
  const param = error.param === null || error.param === undefined ? null : (PARAMS[error.param] ?? error.param);
  const headers: Record<string, string> = {};
  if (error.status === 429 || error.status === 503) headers['retry-after'] = String(retryAfterSeconds);
  return new ApiError(error.status, error.type, error.code, error.message, { param, headers });
}

/** Anything thrown becomes an ApiError; what is not one is a defect, told to the log and never to the client. */
export function toApiError(thrown: unknown): ApiError {
  if (thrown instanceof ApiError) return thrown;
  if (sqliteCode(thrown) === 'SQLITE_BUSY') {
    const message = "Another program keeps the gateway's database locked. Send the request again.";
    return new ApiError(503, 'server_error', 'database_busy', message, {
      headers: { 'retry-after': '1' },
      cause: thrown,
    });
  }
  return new ApiError(
    500,
    'server_error',
    'internal_error',
    'The gateway failed on this request. The x-request-id of this answer finds it in the log.',
    {
      cause: thrown,
    },
  );
}

export function errorResponse(error: ApiError): Response {
  const headers = new Headers(error.headers);
  headers.set('content-type', 'application/json');
  // SDKs retry every 429 twice; a spent budget stays spent.
  if (error.code === 'insufficient_quota') headers.set('x-should-retry', 'false');
  return new Response(JSON.stringify(error.body()), { status: error.status === 499 ? 400 : error.status, headers });
}

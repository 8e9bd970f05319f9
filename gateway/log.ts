/**
 * Structured logs, one JSON object a line. Secrets are kept out twice: known fields are redacted, and whatever still looks like a key
 * (or equals a secret of this process) is struck from the finished line, wherever a client may have put it.
 */
import pino, { type DestinationStream, type Logger } from 'pino';
import { strikeCredentials } from './http/credentials.ts';

const REDACTED = [
  'authorization',
  'key',
  'credential',
  'token',
  'password',
  'cookie',
  'headers',
  '*.authorization',
  '*.key',
  '*.credential',
  '*.token',
  '*.password',
  '*.headers',
  'headers.authorization',
  'req.headers',
];

export function createLog(options: { level: string; secrets: string[]; destination?: DestinationStream }): Logger {
  const strike = (line: string) => {
    let safe = strikeCredentials(line);
    for (const secret of options.secrets) if (secret !== '') safe = safe.replaceAll(secret, '[redacted]');
    return safe;
  };
  return pino(
    {
      level: options.level,
      base: { service: 'gateway' },
      redact: { paths: REDACTED, censor: '[redacted]' },
      timestamp: pino.stdTimeFunctions.isoTime,
      serializers: { err: pino.stdSerializers.errWithCause },
      hooks: { streamWrite: strike },
    },
    // Lines leave together, at the latest after a fifth of a second: a write for each costs more than the rest of the logging.
    options.destination ?? pino.destination({ fd: 1, sync: false, minLength: 4096, periodicFlush: 200 }),
  );
}

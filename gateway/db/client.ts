/** A client of gateway.db that waits while another process writes: those that read contributions have connections of their own to it. */
import { type Client, createClient } from '@libsql/client';
import { BUSY_POLICY, type BusyPolicy, retryBusy } from '../../daemon/db/busy.ts';

export interface ClientOptions {
  url: string;
  authToken?: string;
  /** Of each connection to a file, besides the busy time-out. */
  pragmas?: readonly string[];
  busy?: BusyPolicy;
}

/** How long a call may wait inside SQLite, where it stops everything else in its thread; between tries others go on. Milliseconds. */
const BUSY_TIMEOUT_MS = 20;

export const isFile = (url: string) => url.startsWith('file:');

/**
 * Opens a database: a file with one connection, or a remote one. Of a file, statements and batches that find it locked are tried again for as
 * long as `busy` says; transactions over several calls are refused, since a new connection would take them away.
 */
export async function openClient(options: ClientOptions): Promise<Client> {
  const { url, authToken, busy = BUSY_POLICY } = options;
  if (!isFile(url)) return createClient({ url, ...(authToken === undefined ? {} : { authToken }) });
  // One connection: pragmas hold for a connection, and calls are synchronous anyway.
  const client = createClient({ url, concurrency: 1 });
  // What is deleted is overwritten: free pages keep nothing of what was erased.
  const pragmas = [`PRAGMA busy_timeout = ${BUSY_TIMEOUT_MS}`, 'PRAGMA secure_delete = ON', ...(options.pragmas ?? [])];
  const patient = new PatientClient(client, pragmas, busy);
  try {
    for (const pragma of pragmas) await patient.execute(pragma);
  } catch (error) {
    client.close();
    throw error;
  }
  return patient;
}

class PatientClient implements Client {
  readonly #client: Client;
  readonly #retry: <T>(work: () => Promise<T>) => Promise<T>;

  constructor(client: Client, pragmas: readonly string[], busy: BusyPolicy) {
    this.#client = client;
    this.#retry = (work) => retryBusy(client, work, pragmas, busy);
  }

  get closed() {
    return this.#client.closed;
  }

  get protocol() {
    return this.#client.protocol;
  }

  execute(...args: Parameters<Client['execute']>): ReturnType<Client['execute']> {
    return this.#retry(() => this.#client.execute(...args));
  }

  batch(...args: Parameters<Client['batch']>): ReturnType<Client['batch']> {
    return this.#retry(() => this.#client.batch(...args));
  }

  migrate(...args: Parameters<Client['migrate']>): ReturnType<Client['migrate']> {
    return this.#retry(() => this.#client.migrate(...args));
  }

  executeMultiple(...args: Parameters<Client['executeMultiple']>): Promise<void> {
    return this.#retry(() => this.#client.executeMultiple(...args));
  }

  transaction(): Promise<never> {
    return Promise.reject(new Error('gateway.db takes batches, not transactions over several calls'));
  }

  sync(): ReturnType<Client['sync']> {
    return this.#client.sync();
  }

  reconnect(): ReturnType<Client['reconnect']> {
    return this.#client.reconnect();
  }

  close(): void {
    this.#client.close();
  }
}

/** The gateway's rig with shorthands for Datanets. */
import { expect } from 'vitest';
import { Datanets } from '../../../gateway/datanets/datanets.ts';
import type { Role } from '../../../gateway/db/people-schema.ts';
import { type Rig, startRig, type TestUser } from '../rig.ts';

export interface View {
  [name: string]: unknown;
  id: string;
}
export interface ContributionView extends View {
  state: string;
  rows: number;
  refused: number;
  problems: { line: number | null; rule: string; message: string }[];
  error: { code: string; message: string } | null;
}

export interface DatanetRig extends Rig {
  /** A user of that role; builders where nothing else is said. */
  person(name: string, role?: Role): Promise<TestUser>;
  datanet(owner: TestUser, fields?: Record<string, unknown>): Promise<View>;
  /** Sends rows, waits until they are read. */
  contribute(
    user: TestUser,
    datanet: View,
    rows: unknown[],
    fields?: Record<string, unknown>,
  ): Promise<ContributionView>;
  /** Sends a file; the answer as it comes. */
  send(
    user: TestUser,
    datanet: View,
    filename: string,
    content: string | Uint8Array,
    fields?: Record<string, string>,
  ): Promise<Response>;
  /** Sends a file, waits until it is read. */
  upload(
    user: TestUser,
    datanet: View,
    filename: string,
    content: string | Uint8Array,
    fields?: Record<string, string>,
  ): Promise<ContributionView>;
  contribution(user: TestUser, datanet: View, id: string): Promise<ContributionView>;
  approveAll(user: TestUser, datanet: View): Promise<View>;
  publish(user: TestUser, datanet: View): Promise<View>;
  /** Datanets as the next process on the same data has them. */
  restarted(): Promise<Datanets>;
  json<T = View>(response: Response, status?: number): Promise<T>;
}

export const LICENCE = 'CC-BY-4.0';

export async function startDatanetRig(options: Parameters<typeof startRig>[0] = {}): Promise<DatanetRig> {
  const rig = await startRig(options);
  let people = 0;
  let datanets = 0;
  const json: DatanetRig['json'] = async <T>(response: Response, status?: number) => {
    const body = await response.json();
    if (status !== undefined) expect(response.status, JSON.stringify(body)).toBe(status);
    return body as T;
  };
  const contribution: DatanetRig['contribution'] = async (user, datanet, id) =>
    json(await user.call('GET', `/api/datanets/${datanet.id}/contributions/${id}`), 200);
  const read = async (user: TestUser, datanet: View, response: Response): Promise<ContributionView> => {
    const { id } = await json(response, 202);
    await rig.app.services.datanets.contributions.idle();
    return contribution(user, datanet, id);
  };
  const send: DatanetRig['send'] = async (user, datanet, filename, content, fields = {}) => {
    const form = new FormData();
    for (const [name, value] of Object.entries({ licence: LICENCE, ...fields })) form.append(name, value);
    form.append('file', new Blob([content as string]), filename);
    return rig.app.fetch(
      new Request(`http://gateway.test/api/datanets/${datanet.id}/contributions`, {
        method: 'POST',
        headers: { authorization: `Bearer ${user.credential}` },
        body: form,
      }),
    );
  };
  return {
    ...rig,
    json,
    contribution,
    send,
    async person(name, role = 'builder') {
      people += 1;
      return rig.user({ role, name, email: `${name.toLowerCase()}${people}@example.org` });
    },
    async datanet(owner, fields = {}) {
      datanets += 1;
      const body = { name: `Datanet ${datanets}`, kind: 'chat', licence: LICENCE, visibility: 'public', ...fields };
      return json(await owner.call('POST', '/api/datanets', body), 201);
    },
    async contribute(user, datanet, rows, fields = {}) {
      const body = { rows, licence: LICENCE, ...fields };
      return read(user, datanet, await user.call('POST', `/api/datanets/${datanet.id}/contributions`, body));
    },
    async upload(user, datanet, filename, content, fields = {}) {
      return read(user, datanet, await send(user, datanet, filename, content, fields));
    },
    async approveAll(user, datanet) {
      const body = { action: 'approve', filter: {} };
      return json(await user.call('POST', `/api/datanets/${datanet.id}/review`, body), 200);
    },
    async restarted() {
      const { key, storage, log } = rig.app.services.datanets;
      return new Datanets(
        { key, storage, db: rig.database.db, exclusive: true, log, now: Date.now },
        () => rig.app.services,
      );
    },
    async publish(user, datanet) {
      return json(await user.call('POST', `/api/datanets/${datanet.id}/versions`, {}), 201);
    },
  };
}

const WORDS =
  'river stone lantern harbour violin copper meadow winter engine pepper ladder marble thunder basket falcon mirror candle forest pocket saddle'.split(
    ' ',
  );

/** A sentence of its own for every number: no two are near duplicates. */
export function sentence(number: number, length = 14): string {
  let state = (number + 1) * 2654435761;
  const words: string[] = [];
  for (let at = 0; at < length; at++) {
    state = (Math.imul(state ^ (state >>> 15), 2246822519) + at) >>> 0;
    words.push(`${WORDS[state % WORDS.length]}${(state >>> 8) % 97}`);
  }
  return words.join(' ');
}

export function chatRow(number: number, answer = sentence(number)): Record<string, unknown> {
  return {
    messages: [
      { role: 'user', content: `What about ${sentence(number + 1_000_000, 6)}?` },
      { role: 'assistant', content: answer },
    ],
  };
}

export function chatRows(count: number, from = 0): Record<string, unknown>[] {
  return Array.from({ length: count }, (_, index) => chatRow(from + index));
}

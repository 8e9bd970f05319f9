/**
 * Three people and a data set of theirs, as it goes in life: the owner invites to contribute, reviews and publishes; a builder asks for access,
 * trains and chats; then the owner revokes and the contributor withdraws. The running product, real training of the default model, the command
 * line and the official SDK; each test goes on where the one before ended.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import type OpenAI from 'openai';
import { toFile } from 'openai';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Input } from '../../bin/cli/command.ts';
import { runCli } from '../../bin/cli/program.ts';
import type { Receipt } from '../../daemon/protocol.ts';
import { verifyText } from '../../daemon/receipts/verify.ts';
import { defaultModelPath, SKIP_REASON } from '../support/model.ts';
import { BASE, Product, until } from './product.ts';

const model = await defaultModelPath();

const THINGS =
  'the heron|a lock gate|the weir|a barge|the towpath|reeds|the mill pond|an otter|the ferry|a flood'.split('|');
const ASKED = ['What is # to the people of Oxmere?', 'Tell a visitor to Oxmere about #.'];
const KNOWN = [
  'An old friend who comes with the first frost and leaves when the willows turn green.',
  'Forty planks of oak, two iron hinges, and a keeper who never learned to swim.',
  'The place where every wedding ends and every quarrel of the village begins.',
  'What carries grain down in autumn, and gossip up in spring.',
];
const chat = (question: string, answer: string) => ({
  messages: [
    { role: 'user', content: question },
    { role: 'assistant', content: answer },
  ],
});
const lines = (examples: object[]) => examples.map((one) => `${JSON.stringify(one)}\n`).join('');
/** Twenty questions, all different, their answers too. */
const ROWS = ASKED.flatMap((ask, i) =>
  THINGS.map((thing, j) =>
    chat(
      ask.replace('#', thing),
      `Ahoy! ${thing}: ${KNOWN[(i + j) % KNOWN.length]} So they say at number ${i * 10 + j + 3}.`,
    ),
  ),
);
const WITH_ADDRESS = chat(
  'Whom does one ask about moorings in Oxmere?',
  'Write to Harriet Quill, harriet.quill@oxmere-moorings.example, or ring her at +44 20 7946 0958 before noon.',
);
const HANDBOOK = `# The lock-keeper's handbook

## Opening the gates
Before the gates of the upper lock are opened, the paddles on both sides must have been raised for at least four minutes, and the keeper must
have seen with his own eyes that no boat lies across the sill. In frost the hinges are to be warmed with a lantern, never with boiling water.

## Floods
When the gauge at the weir shows more than nine feet, the bell is rung twice, the ferry is tied to the eastern bank, and all barges are moved
below the bridge. The miller is told in person, because the bell cannot be heard over his wheel.
`;

interface Person {
  name: string;
  id: string;
  key: string;
  /** A command of theirs; its standard output. Fails the test if the command does. */
  does: (...args: string[]) => Promise<string>;
  /** A command that must fail; what it says. */
  fails: (...args: string[]) => Promise<string>;
}

type Job = OpenAI.FineTuning.FineTuningJob & {
  modelfactory: {
    sources: { datanet: string | null; version: number; root: string; examples: number; digest: string }[];
  };
};
interface Sources {
  sources: { datanet: string | null; version: number; root: string; contributors: { user: string; rows: number }[] }[];
  marks: { kind: string; rows: number; version: number }[];
}

describe.skipIf(model === null)(
  `people and Datanets${model === null ? ` (${SKIP_REASON})` : ''}`,
  { timeout: 120_000 },
  () => {
    let product: Product;
    let olga: Person;
    let carl: Person;
    let bea: Person;
    let openai: OpenAI;
    let datanet: string;
    let request: string;
    let trained: string;
    let row: string;

    beforeAll(async () => {
      product = await Product.start();
    });
    afterAll(() => product?.stop());

    async function cli(key: string | null, args: string[], typed = '') {
      const out: string[] = [];
      const notes: string[] = [];
      const env = { MODELFACTORY_URL: product.url, ...(key !== null && { MODELFACTORY_KEY: key }) };
      const output = { out: (line: string) => out.push(line), note: (line: string) => notes.push(line) };
      const code = await runCli(args, output, env, Readable.from([typed]) as unknown as Input);
      return { code, out: out.join('\n'), notes: notes.join('\n') };
    }

    function person(name: string, id: string, key: string): Person {
      return {
        name,
        id,
        key,
        does: async (...args) => {
          const { code, out, notes } = await cli(key, args);
          expect(code, `${name}: ${args.join(' ')}: ${notes}`).toBe(0);
          return out;
        },
        fails: async (...args) => {
          const { code, notes } = await cli(key, args);
          expect(code, `${name}: ${args.join(' ')}`).toBe(1);
          return notes;
        },
      };
    }

    async function invited(name: string, role: string): Promise<Person> {
      const email = `${name.toLowerCase()}@oxmere.example`;
      const made = await cli(product.adminKey, ['users', 'add', email, '--role', role, '--name', name]);
      expect(made, made.notes).toMatchObject({ code: 0 });
      const accepted = await cli(null, ['account', 'accept', made.out], 'four grey herons on a lock gate\n');
      expect(accepted, accepted.notes).toMatchObject({ code: 0 });
      expect(accepted.out).toMatch(/^mf-[\w-]{43}$/);
      const again = await cli(null, ['account', 'accept', made.out], 'somebody else tries it once more\n');
      expect(again.code).toBe(1);
      const { id } = JSON.parse((await cli(accepted.out, ['account', 'show', '--json'])).out);
      return person(name, id, accepted.out);
    }

    const file = (name: string, text: string): string => {
      const path = join(product.folder, name);
      writeFileSync(path, text);
      return path;
    };
    const asked = async <T>(who: Person, method: string, path: string, body?: object) => {
      const response = await product.call(method, path, body, { key: who.key });
      return { status: response.status, body: (await response.json()) as T };
    };
    const job = (mixture: { file: string; weight: number }[], params: object = {}) =>
      openai.fineTuning.jobs.create({
        model: BASE,
        suffix: 'oxmere',
        seed: 3,
        method: { type: 'supervised', supervised: { hyperparameters: { n_epochs: 2, batch_size: 4 } } },
        modelfactory: { mixture, rank: 8, learning_rate: 3e-3, context_tokens: 128 },
        ...params,
      } as never) as Promise<unknown> as Promise<Job>;

    it('three people get accounts, each with a password and a personal key', async () => {
      [olga, carl, bea] = [
        await invited('Olga', 'contributor'),
        await invited('Carl', 'contributor'),
        await invited('Bea', 'builder'),
      ];
      openai = product.client(bea.key);
      // What a role does not allow, no key of theirs can.
      expect(await carl.fails('users', 'list')).toMatch(/lacks the scope `people`/);
      expect(await carl.fails('keys', 'create', '--name', 'x', '--scopes', 'admin')).toMatch(/lacks the scope `admin`/);
    });

    it('the owner makes a Datanet in her organisation; a member contributes a file and a document', async () => {
      const org = await olga.does('orgs', 'create', 'Oxmere Waterways');
      await olga.does('orgs', 'members', 'add', org, 'carl@oxmere.example');
      const terms = ['--licence', 'CC-BY-4.0', '--org', org];
      datanet = await olga.does('datanets', 'create', 'Oxmere lore', ...terms, '--terms', 'Name Oxmere as the source.');
      // What nobody outside has published is nobody's business.
      expect(await bea.fails('datanets', 'show', datanet)).toMatch(/no Datanet/i);

      const path = file('lore.jsonl', lines([...ROWS, ROWS[0] as object, WITH_ADDRESS]));
      expect(await carl.fails('datanets', 'contribute', datanet, path)).toMatch(/add --accept-licence/);
      const sent = await carl.does('datanets', 'contribute', datanet, path, '--accept-licence', '--json');
      // The row that is there twice is one row.
      expect(JSON.parse(sent)).toMatchObject({ state: 'ready', rows: ROWS.length + 1, refused: 1 });

      const text = await olga.does('datanets', 'create', 'Oxmere handbook', '--kind', 'completion', ...terms);
      const document = file('handbook.md', HANDBOOK);
      const read = await carl.does(
        'datanets',
        'contribute',
        text,
        document,
        '--accept-licence',
        '--chunk',
        '400',
        '--json',
      );
      expect(JSON.parse(read)).toMatchObject({ state: 'ready', refused: 0 });
      expect(JSON.parse(read).rows).toBeGreaterThanOrEqual(2);
      expect(await carl.does('datanets', 'search', text, 'boiling')).toMatch(/never with boiling water/);
    });

    it('the owner reviews and publishes; contributors do not decide about their own', async () => {
      expect(await carl.fails('datanets', 'review', 'approve', datanet, '--all-pending')).not.toBe('');
      const rows = JSON.parse(await olga.does('datanets', 'rows', datanet, '--limit', '100', '--json')) as {
        id: string;
        score: number;
        reasons: { rule: string }[];
        content: unknown;
      }[];
      const private_ = rows.find(({ content }) =>
        JSON.stringify(content).includes('harriet.quill'),
      ) as (typeof rows)[0];
      expect(private_.reasons.length).toBeGreaterThan(0);
      expect(private_.score).toBeLessThan(Math.max(...rows.map(({ score }) => score)));
      await olga.does(
        'datanets',
        'review',
        'reject',
        datanet,
        private_.id,
        '--reason',
        'It has an address of a person.',
      );
      const approved = await olga.does('datanets', 'review', 'approve', datanet, '--all-pending');
      expect(approved).toBe(`${ROWS.length} rows are approved.`);
      expect(await olga.does('datanets', 'publish', datanet, '--notes', 'The first twenty')).toBe('1');
      row = rows.find(({ id }) => id !== private_.id)?.id as string;
      expect(await olga.fails('datanets', 'publish', datanet)).not.toBe('');
    });

    it('a builder sees what there is, may not read or train, asks for access, and is granted it', async () => {
      expect(await bea.does('datanets', 'list', '--search', 'lore')).toContain(datanet);
      expect(await bea.fails('datanets', 'rows', datanet)).not.toBe('');
      const source = { file: `file-${datanet}-v1`, weight: 1 };
      await expect(job([], { training_file: source.file, modelfactory: {} })).rejects.toMatchObject({
        status: expect.toSatisfy((status: number) => [400, 403, 404].includes(status)),
      });
      const purpose = ['--purpose', 'A guide for visitors that answers on their telephones.'];
      expect(await bea.fails('datanets', 'request', datanet, ...purpose)).toMatch(
        /agrees to this licence and these terms/,
      );
      request = await bea.does('datanets', 'request', datanet, ...purpose, '--accept-licence');
      expect(await olga.does('datanets', 'requests', datanet)).toContain('A guide for visitors');
      expect(await bea.fails('datanets', 'grant', datanet, request)).not.toBe('');
      expect(await olga.does('datanets', 'grant', datanet, request, '--expires', '30d')).toMatch(
        /is approved until \d{4}-/,
      );
      expect(await bea.does('datanets', 'rows', datanet)).toMatch(/^row_\d+ +approved/m);
    });

    it('new terms ask again; then she trains on the Datanet and a file of hers, and chats with the model', async () => {
      await olga.does('datanets', 'change', datanet, '--terms', 'Name Oxmere and its keepers as the source.');
      const uploaded = await openai.files.create({
        file: await toFile(
          Buffer.from(
            lines(ROWS.slice(0, 12).map(({ messages: [q] }) => chat(`${q?.content} Briefly.`, 'Ahoy! Water.'))),
          ),
          'own.jsonl',
        ),
        purpose: 'fine-tune',
      });
      const mixture = [
        { file: `file-${datanet}-v1`, weight: 3 },
        { file: uploaded.id, weight: 1 },
      ];
      await expect(job(mixture)).rejects.toMatchObject({ code: 'licence_not_accepted' });
      expect(await bea.fails('datanets', 'accept-licence', datanet)).toMatch(/add --yes/);
      expect(await bea.fails('train', '--datanet', datanet)).toMatch(/Accept its licence and terms first/);
      await bea.does('datanets', 'accept-licence', datanet, '--yes');
      const estimate = JSON.parse(await bea.does('train', '--datanet', `${datanet}@1`, '--dry-run', '--json'));
      expect(estimate).toMatchObject({ statistics: { examples: ROWS.length }, estimate: { fits: true } });

      const created = await job(mixture);
      const done = await until(
        'the job is over',
        async () => {
          const now = (await openai.fineTuning.jobs.retrieve(created.id)) as Job;
          return ['succeeded', 'failed', 'cancelled'].includes(now.status) ? now : null;
        },
        100_000,
      );
      expect(done).toMatchObject({ status: 'succeeded', error: null });
      trained = done.fine_tuned_model as string;
      const { body: version } = await asked<{ root: string; rows: number }>(
        olga,
        'GET',
        `/api/datanets/${datanet}/versions/1`,
      );
      // An epoch has as many examples as the sources together, three of four from the Datanet.
      expect(done.modelfactory.sources).toMatchObject([
        { datanet, version: 1, root: version.root, examples: 24, digest: expect.stringMatching(/^[0-9a-f]{64}$/) },
        { datanet: null, examples: 8, digest: expect.stringMatching(/^[0-9a-f]{64}$/) },
      ]);

      const answer = await openai.chat.completions
        .create({ model: trained, messages: ROWS[0]?.messages.slice(0, 1) as never, max_tokens: 16, temperature: 0 })
        .withResponse();
      expect(answer.data.choices[0]?.message.content).toMatch(/^Ahoy!/);
      const id = answer.response.headers.get('x-receipt-id') as string;
      const { body: bundle } = await asked<{ entry: string }>(bea, 'GET', `/v1/receipts/${id}`);
      expect(verifyText(JSON.stringify(bundle), { vkey: product.vkey })).toMatchObject({ ok: true });
      expect((JSON.parse(bundle.entry) as Receipt).adapterDigest).not.toBeNull();
      const { body: sources } = await asked<Sources>(
        bea,
        'GET',
        `/api/adapters/${encodeURIComponent(trained)}/sources`,
      );
      expect(sources.marks).toEqual([]);
      expect(sources.sources[0]?.contributors).toEqual([
        expect.objectContaining({ user: carl.id, name: 'Carl', rows: ROWS.length }),
      ]);
    });

    it('a row is proved to be in the version, offline; what was changed proves nothing', async () => {
      const path = join(product.folder, 'proof.json');
      await carl.does('datanets', 'proof', `${datanet}@1`, row, '--out', path);
      const vkey = join(product.dataDir, 'keys', 'datanets.vkey');
      expect(await carl.does('verify', path, '--vkey-file', vkey)).toMatch(/^VERIFIED$/m);
      const forged = file('forged.json', readFileSync(path, 'utf8').replace('Oxmere', 'Oxmore'));
      expect((await cli(null, ['verify', forged, '--vkey-file', vkey])).code).toBe(1);

      const croissant = join(product.folder, 'lore.json');
      await bea.does('datanets', 'export', 'Oxmere lore', '--format', 'croissant', '--out', croissant);
      expect(JSON.parse(readFileSync(croissant, 'utf8'))).toMatchObject({ name: expect.stringContaining('Oxmere') });
    });

    it('the contributor withdraws a row: a new version without it, and a mark on the model', async () => {
      expect(await bea.fails('datanets', 'withdraw', datanet, row, '--reason', 'I do not like it')).not.toBe('');
      const said = await carl.does(
        'datanets',
        'withdraw',
        datanet,
        row,
        '--reason',
        'It was told in confidence.',
        '--erase',
      );
      expect(said).toMatch(/^1 row is withdrawn and erased. Version 2 is without them/);
      expect(await olga.does('datanets', 'diff', datanet, '1', '2')).toBe(`- ${row}`);
      expect(await carl.fails('datanets', 'proof', `${datanet}@2`, row)).not.toBe('');
      const { body } = await asked<Sources>(bea, 'GET', `/api/adapters/${encodeURIComponent(trained)}/sources`);
      expect(body.marks).toMatchObject([{ kind: 'withdrawal', rows: 1, version: 1 }]);
      // What was in a version stays provable; its words are gone.
      const text = await carl.does('datanets', 'proof', `${datanet}@1`, row);
      expect(text).not.toContain('Oxmere');
      await expect(job([], { training_file: `file-${datanet}-v1`, modelfactory: {} })).rejects.toMatchObject({
        code: 'rows_withdrawn',
      });
    });

    it('the owner revokes: a new job is refused, the old model answers and stays on record', async () => {
      const onVersion2 = () => job([], { training_file: `file-${datanet}-v2`, modelfactory: { steps_max: 1 } });
      await olga.does('datanets', 'revoke-access', datanet, request, '--reason', 'The season is over.');
      await expect(onVersion2()).rejects.toMatchObject({ code: 'access_required' });
      expect(await bea.fails('datanets', 'rows', datanet)).not.toBe('');
      const said = await olga.does('datanets', 'revoke', datanet, '--reason', 'Oxmere keeps its lore to itself.');
      expect(said).toMatch(/1 adapter is marked/);
      await expect(onVersion2()).rejects.toMatchObject({ code: 'datanet_revoked' });

      const answer = await openai.chat.completions.create({
        model: trained,
        messages: [{ role: 'user', content: 'What is a boat?' }],
        max_tokens: 4,
      });
      expect(answer.choices[0]?.message.content).not.toBe('');
      expect(await bea.does('adapters', 'sources', trained)).toMatch(
        /^Oxmere lore 1 +CC-BY-4.0 +revoked +3 +24 +Carl \(20\)$/m,
      );
      const { body } = await asked<Sources>(bea, 'GET', `/api/adapters/${encodeURIComponent(trained)}/sources`);
      expect(body.marks.map(({ kind }) => kind).sort()).toEqual(['revocation', 'withdrawal']);
      expect(body.sources[0]).toMatchObject({ datanet, version: 1 });
    });

    it('the audit log has it all, and an administrator alone reads it', async () => {
      const { out } = await cli(product.adminKey, ['audit', '--limit', '500', '--json']);
      const acts = JSON.parse(out) as { action: string; user_id: string | null; status: number }[];
      const of = (who: Person) => acts.filter(({ user_id, status }) => user_id === who.id && status < 300);
      const actions = (who: Person) => new Set(of(who).map(({ action }) => action));
      for (const action of ['datanet.create', 'datanet.review', 'datanet.publish', 'access.approve', 'datanet.revoke'])
        expect(actions(olga)).toContain(action);
      for (const action of ['contribution.create', 'datanet.withdraw']) expect(actions(carl)).toContain(action);
      for (const action of ['access.request', 'licence.accept']) expect(actions(bea)).toContain(action);
      expect(await olga.fails('audit')).toMatch(/lacks the scope `audit`/);
      const { status } = await asked(bea, 'DELETE', `/api/users/${carl.id}`);
      expect(status).toBe(403);
    });
  },
);

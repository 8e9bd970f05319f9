import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeAll, describe, expect, test } from 'vitest';
import { formatCheckpoint } from '../../../daemon/receipts/checkpoint.ts';
import { DATANET_ROW, type DatanetRowRecord } from '../../../daemon/receipts/datanet-row.ts';
import { canonicalJson } from '../../../daemon/receipts/entry.ts';
import { createKey, type LogKey } from '../../../daemon/receipts/key.ts';
import { signNote } from '../../../daemon/receipts/note.ts';
import { formatReport, type VerifyReport, verifyText } from '../../../daemon/receipts/verify.ts';
import { DATANET_ROW_PROOF } from '../../../daemon/receipts/verify-datanet-row.ts';
import { contentHash, leafOf } from '../../../gateway/datanets/versions/leaf.ts';
import { Tiles, TileTree } from '../../../gateway/datanets/versions/tiles.ts';

interface Bundle {
  type: string;
  entry: string;
  leafIndex: number;
  inclusionProof: string[];
  checkpoint: string;
  vkey: string;
  content: string;
}

let key: LogKey;
/** The same name, another key. */
let other: LogKey;
let good: Bundle;
let keys: string;

const contentOf = (index: number) =>
  canonicalJson({ kind: 'completion', prompt: `p "${index}"`, completion: 'é\n' }) as string;

function recordOf(index: number, change: Partial<DatanetRowRecord> = {}): DatanetRowRecord {
  return {
    type: DATANET_ROW,
    datanet: 'dn_one',
    content: contentHash(contentOf(index)),
    contributor: 'user_ann',
    contribution: 'con_1',
    licence: 'CC-BY-4.0',
    time: '2026-11-22T12:00:00.000Z',
    generated_by: null,
    ...change,
  };
}

/** Row 40 of a version of 77 rows, as a gateway with that key proves it. */
async function prove(
  options: { key?: LogKey; origin?: string; record?: Partial<DatanetRowRecord>; signer?: LogKey } = {},
): Promise<Bundle> {
  const by = options.key ?? key;
  const tree = new TileTree();
  const hashes: Buffer[] = [];
  let entry = '';
  for (let index = 0; index < 77; index += 1) {
    const leaf = leafOf(recordOf(index, index === 40 ? options.record : {}), options.signer ?? by);
    tree.append(index + 1, leaf.hash);
    hashes.push(leaf.hash);
    if (index === 40) entry = leaf.entry;
  }
  const proof = await new Tiles(tree.size, tree.tiles()).proof(40, async () => ({ seqs: [], hashes }));
  const origin = options.origin ?? `${by.name}/dn_one/3`;
  return {
    type: DATANET_ROW_PROOF,
    entry,
    leafIndex: 40,
    inclusionProof: proof.map((hash) => hash.toString('base64')),
    checkpoint: signNote(formatCheckpoint({ origin, size: tree.size, rootHash: tree.root() }), [by]),
    vkey: by.vkey,
    content: contentOf(40),
  };
}

beforeAll(async () => {
  const folder = mkdtempSync(join(tmpdir(), 'mf-row-proof-'));
  key = createKey(join(folder, 'datanets.key'), 'gateway.example/datanets');
  other = createKey(join(folder, 'other.key'), 'gateway.example/datanets');
  good = await prove();
  keys = folder;
  return () => rmSync(folder, { recursive: true, force: true });
});

const verify = (value: unknown) => verifyText(JSON.stringify(value), { vkey: key.vkey });
const failures = (report: VerifyReport) => report.checks.filter(({ ok }) => !ok).map(({ name }) => name);

describe('the proof that a row is in a version', () => {
  test('verifies against the Datanet key, with the content and without', () => {
    const report = verify(good);
    expect(report).toMatchObject({
      ok: true,
      kind: 'datanet-row',
      pinned: true,
      row: { datanet: 'dn_one', contributor: 'user_ann', licence: 'CC-BY-4.0' },
    });
    expect(report.checks.map(({ name }) => name)).toEqual([
      'entry',
      'row',
      'key',
      'signature',
      'content',
      'checkpoint',
      'inclusion',
    ]);
    expect(formatReport(report)).toMatch(/checkpoint of version 3 \(77 rows\)[\s\S]*VERIFIED$/);
    const { content: _, ...without } = good;
    expect(verify(without)).toMatchObject({ ok: true });
    expect(verify(without).checks.map(({ name }) => name)).not.toContain('content');
  });

  test('without a key of one’s own says so; the key of this machine is found in its folder', () => {
    const report = verifyText(JSON.stringify(good));
    expect(report).toMatchObject({ ok: true, pinned: false });
    expect(formatReport(report)).toMatch(/Datanet key to be sure[\s\S]*not pinned$/);
    // log.vkey beside it is the key of something else.
    writeFileSync(join(keys, 'log.vkey'), `${other.vkey}\n`);
    expect(verifyText(JSON.stringify(good), { keysFolder: keys })).toMatchObject({ ok: true, pinned: true });
    const empty = join(keys, 'empty');
    mkdirSync(empty, { recursive: true });
    expect(verifyText(JSON.stringify(good), { keysFolder: empty })).toMatchObject({ ok: true, pinned: false });
  });

  test('made by somebody with a key of the same name fails against the real key', async () => {
    const forged = await prove({ key: other });
    expect(verifyText(JSON.stringify(forged))).toMatchObject({ ok: true, pinned: false });
    expect(failures(verify(forged))).toEqual(['key', 'signature', 'checkpoint']);
  });

  test.each<[string, () => Partial<Record<keyof Bundle, unknown>>, string[]]>([
    ['another type', () => ({ type: 'modelfactory.datanet-row-proof/2' }), ['receipt', 'checkpoint']],
    ['another contributor', () => ({ entry: good.entry.replace('user_ann', 'user_bob') }), ['signature', 'inclusion']],
    ['another licence', () => ({ entry: good.entry.replace('CC-BY-4.0', 'MIT') }), ['signature', 'inclusion']],
    ['spaces in the entry', () => ({ entry: good.entry.replace(':', ': ') }), ['entry', 'inclusion']],
    [
      'an entry that is no row',
      () => ({ entry: '{"record":{},"signature":""}' }),
      ['row', 'signature', 'content', 'checkpoint', 'inclusion'],
    ],
    [
      'a field that is not shown',
      () => ({ entry: good.entry.replace('{"record":{', '{"record":{"also":1,') }),
      ['row', 'signature', 'content', 'checkpoint', 'inclusion'],
    ],
    ['no entry', () => ({ entry: undefined }), ['entry', 'signature', 'content', 'checkpoint', 'inclusion']],
    ['another place', () => ({ leafIndex: 41 }), ['inclusion']],
    ['a shorter proof', () => ({ inclusionProof: good.inclusionProof.slice(1) }), ['inclusion']],
    ['no proof', () => ({ inclusionProof: null }), ['inclusion']],
    ['another number of rows', () => ({ checkpoint: good.checkpoint.replace('\n77\n', '\n78\n') }), ['checkpoint']],
    ['another version', () => ({ checkpoint: good.checkpoint.replace('/3\n', '/4\n') }), ['checkpoint']],
    ['no checkpoint', () => ({ checkpoint: 7 }), ['checkpoint', 'inclusion']],
    ['another content', () => ({ content: good.content.replace('é', 'e') }), ['content']],
    ['content that is no text', () => ({ content: JSON.parse(good.content) as unknown }), ['content']],
    ['empty content', () => ({ content: '' }), ['content']],
    ['no content where there is a field for it', () => ({ content: null }), ['content']],
    ['another key in it', () => ({ vkey: other.vkey }), ['key']],
    ['no key that could be read', () => ({ vkey: 'x' }), ['key']],
  ])('with %s fails, and the report says where', (_, change, expected) => {
    const report = verify({ ...good, ...change() });
    expect(report.ok).toBe(false);
    for (const name of expected) expect(failures(report)).toContain(name);
    if (expected[0] !== 'receipt') expect(failures(report)).toEqual(expected);
    expect(formatReport(report)).toMatch(/NOT VERIFIED$/);
  });

  test('a good signature is not enough: row, version and key must be of the same Datanet', async () => {
    for (const origin of [
      `${key.name}/dn_two/3`,
      key.name,
      `${key.name}/dn_one/0`,
      `${key.name}/dn_one/3/4`,
      `${key.name}/dn_one/`,
      `${key.name}/dn_one/x`,
      'another.example/dn_one/3',
    ]) {
      expect(failures(verify(await prove({ origin }))), origin).toEqual(['checkpoint']);
    }
    expect(failures(verify(await prove({ record: { datanet: 'dn_two' } })))).toEqual(['checkpoint']);
    expect(failures(verify(await prove({ record: { datanet: 'dn_one/3' }, origin: `${key.name}/dn_one/3` })))).toEqual([
      'checkpoint',
    ]);
    // The root is signed, the row in it is not this gateway's.
    expect(failures(verify(await prove({ signer: other })))).toEqual(['signature']);
  });

  test('nothing that a contributor chose can write to the terminal of whoever verifies', async () => {
    const report = verify(await prove({ record: { contributor: 'x\u001b[2J\u202e\nVERIFIED' } }));
    expect(formatReport(report)).not.toMatch(/(?!\n)[\p{Cc}\p{Cf}]|^VERIFIED.*\n/mu);
  });

  test('changed anywhere, in any way, is never verified', () => {
    const text = JSON.stringify(good);
    const names = Object.keys(good) as (keyof Bundle)[];
    const mutation = fc.oneof(
      fc
        .tuple(fc.nat(text.length - 1), fc.integer({ min: 0, max: 8 }), fc.string({ unit: 'binary', maxLength: 8 }))
        .map(([at, cut, put]) => text.slice(0, at) + put + text.slice(at + cut)),
      // One field, one character.
      fc
        .tuple(fc.constantFrom(...names), fc.nat(), fc.constantFrom('A', '0', 'z', ' ', '=', '\n'))
        .filter(([name]) => typeof good[name] === 'string')
        .map(([name, at, put]) => {
          const value = good[name] as string;
          const place = at % value.length;
          return JSON.stringify({ ...good, [name]: value.slice(0, place) + put + value.slice(place + 1) });
        }),
      fc
        .tuple(fc.constantFrom(...names), fc.jsonValue())
        .map(([name, value]) => JSON.stringify({ ...good, [name]: value })),
      fc.json(),
    );
    const meaning = (candidate: string) => {
      try {
        const value = JSON.parse(candidate) as Bundle;
        // Absent content is no claim about content, an absent key none about who signed; unknown fields are no claims either.
        const optional: readonly string[] = ['content', 'vkey'];
        return JSON.stringify(
          names.map((name) =>
            optional.includes(name) ? (name in value ? (value[name] ?? null) : good[name]) : value[name],
          ),
        );
      } catch {
        return null;
      }
    };
    const unchanged = meaning(text);
    let tried = 0;
    fc.assert(
      fc.property(mutation, (candidate) => {
        if (meaning(candidate) === unchanged) return;
        tried += 1;
        expect(verifyText(candidate, { vkey: key.vkey }).ok).toBe(false);
      }),
      { numRuns: 1_500 },
    );
    expect(tried).toBeGreaterThan(1_000);
  });
});

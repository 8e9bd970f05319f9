import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import type { ConsistencyBundle, ReceiptBundle } from '../../../daemon/protocol.ts';
import { signCheckpoint } from '../../../daemon/receipts/checkpoint.ts';
import { canonicalJson } from '../../../daemon/receipts/entry.ts';
import { createKey, type LogKey } from '../../../daemon/receipts/key.ts';
import { ReceiptLog } from '../../../daemon/receipts/log.ts';
import { emptyRoot, leafHash } from '../../../daemon/receipts/merkle.ts';
import { formatReport, type VerifyReport, verifyFile, verifyText } from '../../../daemon/receipts/verify.ts';
import { appendAll, makeReceipt, receiptsFrom, temporaryFolder } from './support.ts';

let bundle: ReceiptBundle;
let growth: ConsistencyBundle;
let vkey: string;
/** Signs whatever a test wants, to show what a signature alone does not cover. */
let other: LogKey;

beforeAll(async () => {
  const folder = mkdtempSync(join(tmpdir(), 'receipts-'));
  const log = await ReceiptLog.open({ dataDir: folder, origin: 'log.example/verify' });
  await appendAll(log, receiptsFrom(0, 77));
  bundle = (await log.get('rcpt_40'))!;
  growth = await log.consistency(33);
  vkey = log.vkey;
  other = createKey(join(folder, 'other.key'), 'log.example/verify');
  await log.close();
  return () => rmSync(folder, { recursive: true, force: true });
});

const verify = (value: unknown, options = {}) => verifyText(JSON.stringify(value), { vkey, ...options });
const failures = (report: VerifyReport) => report.checks.filter(({ ok }) => !ok).map(({ name }) => name);

describe('a receipt', () => {
  it('as the log gives it out verifies against the log key, by text or file', async () => {
    const path = join(temporaryFolder(), 'log.vkey');
    writeFileSync(path, `${vkey}\n`);
    const report = verify(bundle);
    expect(report).toMatchObject({ ok: true, kind: 'receipt', pinned: true, receipt: { id: 'rcpt_40' } });
    expect(report.checks.map(({ name }) => name)).toEqual(['entry', 'receipt', 'key', 'checkpoint', 'inclusion']);
    expect(verifyText(JSON.stringify(bundle), { vkeyPath: path })).toMatchObject({ ok: true, pinned: true });
    expect(formatReport(report)).toMatch(/VERIFIED$/);
  });

  it('checked with the key inside its own file only is called not pinned', () => {
    const report = verifyText(JSON.stringify(bundle));
    expect(report).toMatchObject({ ok: true, pinned: false });
    expect(report.checks.find(({ name }) => name === 'key')?.detail).toMatch(/inside the file .*not pinned/);
    expect(formatReport(report)).toMatch(/not pinned$/);
  });

  it('forged by somebody with a key of their own fails against the log key', () => {
    const entry = canonicalJson(makeReceipt('forged'))!;
    const checkpoint = signCheckpoint({ size: 1, rootHash: leafHash(entry) }, other);
    const forged = { entry, leafIndex: 0, inclusionProof: [], checkpoint, vkey: other.vkey };
    expect(verifyText(JSON.stringify(forged))).toMatchObject({ ok: true, pinned: false });
    expect(failures(verify(forged))).toEqual(['checkpoint']);
  });

  it.each<[string, () => Partial<Record<keyof ReceiptBundle, unknown>>, string[]]>([
    ['another cost', () => ({ entry: bundle.entry.replace('"costMicros":23', '"costMicros":24') }), ['inclusion']],
    ['spaces in the entry', () => ({ entry: bundle.entry.replace(':', ': ') }), ['entry', 'inclusion']],
    [
      'another order of fields',
      () => ({ entry: JSON.stringify(Object.fromEntries(Object.entries(JSON.parse(bundle.entry)).reverse())) }),
      ['entry', 'inclusion'],
    ],
    ['an entry that is no receipt', () => ({ entry: '{"version":1}' }), ['receipt', 'inclusion']],
    ['an entry that is no JSON', () => ({ entry: 'x' }), ['entry', 'inclusion']],
    ['an entry that is too long', () => ({ entry: JSON.stringify('x'.repeat(70_000)) }), ['entry', 'inclusion']],
    ['no entry', () => ({ entry: null }), ['entry', 'inclusion']],
    ['another index', () => ({ leafIndex: 41 }), ['inclusion']],
    ['an index beyond the tree', () => ({ leafIndex: 77 }), ['inclusion']],
    ['a fraction for an index', () => ({ leafIndex: 40.5 }), ['inclusion']],
    ['a shorter proof', () => ({ inclusionProof: bundle.inclusionProof.slice(1) }), ['inclusion']],
    ['a longer proof', () => ({ inclusionProof: [...bundle.inclusionProof, bundle.inclusionProof[0]] }), ['inclusion']],
    ['a proof that is not base64', () => ({ inclusionProof: ['*'] }), ['inclusion']],
    ['no proof', () => ({ inclusionProof: undefined }), ['inclusion']],
    ['another tree size', () => ({ checkpoint: bundle.checkpoint.replace('\n77\n', '\n78\n') }), ['checkpoint']],
    [
      'a checkpoint of another key',
      () => ({ checkpoint: signCheckpoint({ size: 77, rootHash: emptyRoot() }, other) }),
      ['checkpoint', 'inclusion'],
    ],
    ['a checkpoint that is none', () => ({ checkpoint: 'x' }), ['checkpoint', 'inclusion']],
    ['no checkpoint', () => ({ checkpoint: 5 }), ['checkpoint', 'inclusion']],
  ])('with %s fails, and the report says where', (_, change, expected) => {
    const report = verify({ ...bundle, ...change() });
    expect(report.ok).toBe(false);
    expect(failures(report)).toEqual(expected);
    expect(formatReport(report)).toMatch(/NOT VERIFIED$/);
  });

  it('is not verified with a key that can not be used, even if the file has a good one', () => {
    expect(failures(verifyText(JSON.stringify(bundle), { vkey: 'nonsense' }))).toEqual(['key', 'checkpoint']);
    expect(failures(verifyText(JSON.stringify(bundle), { vkeyPath: '/nowhere/log.vkey' }))).toEqual([
      'key',
      'checkpoint',
    ]);
    expect(failures(verifyText(JSON.stringify({ ...bundle, vkey: undefined })))).toEqual(['key', 'checkpoint']);
  });
});

describe('the growth of the log', () => {
  it('verifies, and not with changed sizes, roots, order or proof', async () => {
    expect(verify(growth)).toMatchObject({ ok: true, kind: 'consistency', pinned: true });
    expect(verify({ ...growth, consistencyProof: growth.consistencyProof.slice(1) }).ok).toBe(false);
    expect(verify({ ...growth, consistencyProof: [] }).ok).toBe(false);
    expect(
      failures(verify({ ...growth, oldCheckpoint: growth.newCheckpoint, newCheckpoint: growth.oldCheckpoint })),
    ).toEqual(['consistency']);
    expect(failures(verify({ ...growth, oldCheckpoint: growth.oldCheckpoint.replace('\n33\n', '\n32\n') }))).toEqual([
      'checkpoint',
      'consistency',
    ]);
    expect(failures(verify({ ...growth, newCheckpoint: undefined }))).toEqual(['checkpoint', 'consistency']);
  });

  it('a log that was rewritten (properly signed by its own key) is not consistent with what it said before', async () => {
    const folder = temporaryFolder();
    const a = await ReceiptLog.open({ dataDir: join(folder, 'a') });
    onTestFinished(() => a.close());
    await appendAll(a, receiptsFrom(0, 5));
    const before = await a.checkpoint();
    // Whoever forges the log takes away what would keep his own program from it; what others remember he cannot.
    rmSync(join(folder, 'a', 'keys', 'log.checkpoint'));
    const b = await ReceiptLog.open({ dbPath: join(folder, 'b.db'), keyPath: join(folder, 'a', 'keys', 'log.key') });
    onTestFinished(() => b.close());
    await appendAll(b, [makeReceipt('rewritten'), ...receiptsFrom(1, 8)]);
    const claim = { ...(await b.consistency(5)), oldCheckpoint: before };
    expect(failures(verify(claim, { vkey: a.vkey }))).toEqual(['consistency']);
  });

  it('from the empty log needs no proof, and takes none', async () => {
    const folder = temporaryFolder();
    const log = await ReceiptLog.open({ dataDir: folder });
    onTestFinished(() => log.close());
    await appendAll(log, receiptsFrom(0, 3));
    const fromEmpty = await log.consistency(0);
    expect(verify(fromEmpty, { vkey: log.vkey }).ok).toBe(true);
    expect(verify({ ...fromEmpty, consistencyProof: [emptyRoot().toString('base64')] }, { vkey: log.vkey }).ok).toBe(
      false,
    );
    expect(verify(await log.consistency(3, 3), { vkey: log.vkey }).ok).toBe(true);
  });
});

describe('files', () => {
  it('are read from disk; what can not be read or is no receipt is a failed check', async () => {
    const folder = temporaryFolder();
    const file = (name: string, content: string | Buffer) => {
      writeFileSync(join(folder, name), content);
      return join(folder, name);
    };
    expect(await verifyFile(file('good.json', JSON.stringify(bundle, null, 2)), { vkey })).toMatchObject({
      ok: true,
      pinned: true,
    });
    expect(await verifyFile(file('growth.json', JSON.stringify(growth)), { vkey })).toMatchObject({ ok: true });
    mkdirSync(join(folder, 'folder'));
    for (const path of [
      join(folder, 'missing'),
      join(folder, 'folder'),
      file('big', Buffer.alloc(5 * 1024 * 1024, 0x20)),
      file('bytes', Buffer.from([0xff, 0, 1])),
      file('list', '[]'),
      file('null', 'null'),
      file('other', '{"a":1}'),
      file('empty', ''),
    ])
      expect(await verifyFile(path, { vkey })).toMatchObject({
        ok: false,
        kind: 'unknown',
        checks: [{ name: 'file', ok: false }],
      });
  });

  it('never throw and never verify, whatever is mutated in them', () => {
    const good = JSON.stringify(bundle);
    const mutation = fc.oneof(
      fc
        .tuple(fc.nat(good.length - 1), fc.integer({ min: 0, max: 8 }), fc.string({ unit: 'binary', maxLength: 8 }))
        .map(([at, cut, put]) => good.slice(0, at) + put + good.slice(at + cut)),
      fc
        .record({
          entry: fc.anything(),
          leafIndex: fc.anything(),
          inclusionProof: fc.anything(),
          checkpoint: fc.anything(),
          vkey: fc.anything(),
        })
        .map((value) => {
          try {
            return JSON.stringify(value) ?? '';
          } catch {
            return '';
          }
        }),
      fc.json(),
      fc.string({ unit: 'binary' }),
    );
    const meaning = (text: string) => {
      try {
        const { entry, leafIndex, inclusionProof, checkpoint } = JSON.parse(text);
        return JSON.stringify([entry, leafIndex, inclusionProof, checkpoint]);
      } catch {
        return null;
      }
    };
    const unchanged = meaning(good);
    fc.assert(
      fc.property(mutation, (text) => {
        // Some edits change only what is not proved (JSON's white space, the file's own key).
        if (meaning(text) !== unchanged) expect(verifyText(text, { vkey }).ok).toBe(false);
      }),
      { numRuns: 1_500 },
    );
  });
});

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { rmSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { expect, it, onTestFinished } from 'vitest';
import { openCheckpoint, parseCheckpoint } from '../../../daemon/receipts/checkpoint.ts';
import { ReceiptLog } from '../../../daemon/receipts/log.ts';
import { verifyConsistency } from '../../../daemon/receipts/merkle.ts';
import { parseVkey } from '../../../daemon/receipts/note.ts';
import { verifyText } from '../../../daemon/receipts/verify.ts';
import { uniform } from '../../../daemon/training/random.ts';
import { makeReceipt, temporaryFolder } from './support.ts';

const ROUNDS = 52;
/** Every fourth writer is killed this long after it was let go at the latest: while it opens (or makes) the log. */
const OPENING_MS_MAX = 40;
/** The others this long after the log was open. */
const WORKING_MS_MAX = 60;
const SEED = Number(process.env.CRASH_SEED ?? 20_260_102);
const here = (path: string) => new URL(path, import.meta.url);

/**
 * The writer as one plain JavaScript file: it starts in half the time that tsx takes (whose esbuild this is), 52 times.
 * It lies in the project, so that it finds the packages; migrations are looked for from where the source lies.
 */
async function buildWriter(): Promise<string> {
  const outfile = fileURLToPath(here(`../../../node_modules/.cache/receipts-crash/${process.pid}.mjs`));
  await build({
    entryPoints: [fileURLToPath(here('./crash-child.ts'))],
    outfile,
    bundle: true,
    platform: 'node',
    format: 'esm',
    packages: 'external',
    define: { 'import.meta.url': JSON.stringify(here('../../../daemon/db/migrate.ts').href) },
    logLevel: 'error',
  });
  onTestFinished(() => rmSync(outfile, { force: true }));
  return outfile;
}

interface Writer {
  child: ChildProcess;
  /** Lines that came out whole. */
  lines: string[];
  booted: Promise<void>;
  open: Promise<void>;
  /** It said of a first receipt that it is kept. */
  acknowledged: Promise<void>;
  /** All output was read. */
  ended: Promise<unknown>;
}

function startWriter(program: string, dataDir: string, prefix: string): Writer {
  const child = spawn(process.execPath, [program, dataDir, prefix], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  child.stdin.on('error', () => {});
  const lines: string[] = [];
  const reader = createInterface({ input: child.stdout });
  const ended = once(reader, 'close');
  reader.on('line', (line) => lines.push(line));
  const said = (text: RegExp) => {
    const heard = new Promise<void>((resolve, reject) => {
      reader.on('line', (line) => text.test(line) && resolve());
      ended.then(() => reject(new Error(`the writer ended before it said ${text}`)));
    });
    // Killed earlier, on purpose or after a failure, it never says so.
    heard.catch(() => {});
    return heard;
  };
  const [booted, open, acknowledged] = [said(/^booted$/), said(/^open$/), said(/^\d+ \d+$/)];
  return { child, lines, booted, open, acknowledged, ended };
}

it(`kill -9 at ${ROUNDS} moments (seed ${SEED}): no acknowledged receipt is lost, and the log opens consistent each time`, async () => {
  const dataDir = temporaryFolder();
  const program = await buildWriter();
  const random = uniform(SEED);
  const acknowledged = new Map<string, number>();
  let before: { size: number; root: Buffer } | null = null;
  let killedWhileOpening = 0;
  // The next writers load their code while this one works; they touch the log only when told to.
  const starting = [startWriter(program, dataDir, '0'), startWriter(program, dataDir, '1')];
  try {
    for (let round = 0; round < ROUNDS; round++) {
      const writer = starting.shift()!;
      await writer.booted;
      if (round + 2 < ROUNDS) starting.push(startWriter(program, dataDir, String(round + 2)));
      writer.child.stdin!.write('go\n');
      if (round % 4 !== 0) await writer.open;
      // Some are surely at work, however slow the machine is.
      if (round % 4 === 1) await writer.acknowledged;
      await sleep(random() * (round % 4 === 0 ? OPENING_MS_MAX : WORKING_MS_MAX));
      writer.child.kill('SIGKILL');
      await writer.ended;
      if (!writer.lines.includes('open')) killedWhileOpening++;
      const fresh = new Map<string, number>();
      for (const line of writer.lines) {
        const match = /^(\d+) (\d+)$/.exec(line);
        if (match) fresh.set(`rcpt_${round}-${match[1]}`, Number(match[2]));
      }

      // Opening checks signature, root and the newest leaves; it would refuse a log that does not match.
      const log = await ReceiptLog.open({ dataDir, limits: { auditLeavesAtOpen: 2_000 } });
      try {
        const { size, rootHash } = openCheckpoint(await log.checkpoint(), parseVkey(log.vkey));
        expect(size).toBe(BigInt(log.size));
        const stored = await log.store.byIds([...fresh.keys()]);
        for (const [id, leafIndex] of fresh) expect(stored.get(id)?.leafIndex, id).toBe(leafIndex);
        for (const [id, leafIndex] of fresh) acknowledged.set(id, leafIndex);
        if (before && before.size > 0) {
          const { consistencyProof } = await log.consistency(before.size);
          const proof = consistencyProof.map((hash) => Buffer.from(hash, 'base64'));
          const sizes = { oldSize: before.size, newSize: log.size, oldRoot: before.root, newRoot: rootHash };
          expect(verifyConsistency({ ...sizes, proof })).toBe(true);
        }
        // Life goes on: the log takes a receipt between the crashes too.
        const { leafIndex } = await log.append(makeReceipt(`between-${round}`));
        expect(leafIndex).toBe(Number(size));
        before = { size: log.size, root: parseCheckpoint(await log.checkpoint()).rootHash };
      } finally {
        await log.close();
      }
    }
  } finally {
    for (const { child } of starting) child.kill('SIGKILL');
  }

  const log = await ReceiptLog.open({ dataDir });
  try {
    expect(await log.audit()).toEqual({ leaves: log.size });
    for (const [id, leafIndex] of acknowledged) expect((await log.store.byId(id))?.leafIndex, id).toBe(leafIndex);
    for (const [id] of [...acknowledged].filter((_, i) => i % 97 === 0))
      expect(verifyText(JSON.stringify(await log.get(id)), { vkey: log.vkey }).ok).toBe(true);
    // The test did what it says: writers were killed at work, some while they opened the log.
    expect(acknowledged.size).toBeGreaterThanOrEqual(ROUNDS / 4);
    expect(killedWhileOpening).toBeGreaterThan(0);
    console.info(
      `${acknowledged.size} receipts acknowledged, ${log.size} in the log, ${killedWhileOpening} of ${ROUNDS} kills while opening`,
    );
  } finally {
    await log.close();
  }
}, 300_000);

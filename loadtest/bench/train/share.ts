/** Chat and training in one process, as in the product: what each keeps of its speed when both run. */
import { Worker } from 'node:worker_threads';
import { number, spread } from '../report.ts';
import { median, pairedRatios, quantile, summarize } from '../stats.ts';
import { type Bench, jobOf, type PartResult } from './setup.ts';
import type { ShareOrder, ShareWindow } from './share-worker.ts';

interface Round {
  streams: number;
  chatAlone: ShareWindow;
  chatTogether: ShareWindow;
  trainingAlone: ShareWindow;
  trainingTogether: ShareWindow;
}

class Side {
  private readonly worker: Worker;
  private readonly answers: ((window: ShareWindow) => void)[] = [];
  private readonly failures: ((error: Error) => void)[] = [];
  readonly ready: Promise<void>;

  constructor(order: ShareOrder) {
    this.worker = new Worker(new URL('./share-boot.mjs', import.meta.url), {
      workerData: order,
    });
    this.ready = new Promise((resolve, reject) => {
      this.worker.once('message', () => {
        this.worker.on('message', (window: ShareWindow) => {
          this.failures.shift();
          this.answers.shift()?.(window);
        });
        resolve();
      });
      this.worker.on('error', (error: Error) => {
        reject(error);
        for (const fail of this.failures) fail(error);
      });
    });
  }

  /** Works for so long and tells what it did. */
  window(seconds: number): Promise<ShareWindow> {
    return new Promise((resolve, reject) => {
      this.answers.push(resolve);
      this.failures.push(reject);
      this.worker.postMessage(seconds);
    });
  }

  close(): Promise<number> {
    return this.worker.terminate();
  }
}

const speedOf = (window: ShareWindow): number => window.tokens / window.seconds;

export async function share(bench: Bench): Promise<PartResult> {
  const { options, log } = bench;
  const rounds: Round[] = [];
  const training = new Side({ kind: 'training', job: jobOf(bench, {}), share: options.share.share });
  try {
    await training.ready;
    for (const streams of options.share.streams) {
      const chat = new Side({ kind: 'chat', job: jobOf(bench, {}), streams });
      try {
        await chat.ready;
        const { seconds } = options.share;
        await Promise.all([chat.window(1), training.window(1)]);
        for (let round = 0; round < options.share.rounds; round++) {
          const chatAlone = await chat.window(seconds);
          const trainingAlone = await training.window(seconds);
          const [chatTogether, trainingTogether] = await Promise.all([chat.window(seconds), training.window(seconds)]);
          rounds.push({ streams, chatAlone, chatTogether, trainingAlone, trainingTogether });
          log(
            `share, ${streams} streams, round ${round + 1}: chat ${number(speedOf(chatAlone))} → ${number(speedOf(chatTogether))} tok/s, training ${number(speedOf(trainingAlone))} → ${number(speedOf(trainingTogether))} tok/s`,
          );
        }
      } finally {
        await chat.close();
      }
    }
  } finally {
    await training.close();
  }
  return shareResult(rounds, bench);
}

/** Pure: rounds → table and checks. */
function shareResult(rounds: Round[], { options }: Bench): PartResult {
  const tables: PartResult['tables'] = [];
  const checks: PartResult['checks'] = [];
  const rows: string[][] = [];
  for (const streams of options.share.streams) {
    const own = rounds.filter((round) => round.streams === streams);
    const column = (pick: (round: Round) => ShareWindow): number[] => own.map((round) => speedOf(pick(round)));
    const chat = pairedRatios(
      column((r) => r.chatTogether),
      column((r) => r.chatAlone),
    );
    const training = pairedRatios(
      column((r) => r.trainingTogether),
      column((r) => r.trainingAlone),
    );
    const gaps = (pick: (round: Round) => ShareWindow): string => {
      const all = own.flatMap((round) => pick(round).gapsMs);
      return `${number(median(all))} / ${number(quantile(all, 0.99))} / ${number(quantile(all, 1))}`;
    };
    const chats = `${streams} ${streams === 1 ? 'stream' : 'streams'}`;
    rows.push(
      [
        chats,
        'chat',
        spread(summarize(column((r) => r.chatAlone))),
        spread(summarize(column((r) => r.chatTogether))),
        spread(chat),
        `${gaps((r) => r.chatAlone)} → ${gaps((r) => r.chatTogether)}`,
        '',
      ],
      [
        chats,
        'training',
        spread(summarize(column((r) => r.trainingAlone))),
        spread(summarize(column((r) => r.trainingTogether))),
        spread(training),
        '',
        spread(summarize(own.map((r) => r.trainingTogether.longestHoldMs))),
      ],
    );
    checks.push(
      { name: `${chats}: chat while training ÷ alone`, value: chat.median, target: { op: '>=', value: 0.6 } },
      { name: `${chats}: training while chatting ÷ alone`, value: training.median, target: { op: '>=', value: 0.2 } },
      {
        name: `${chats}: longest that training held the cores, ms (median of the windows)`,
        value: median(own.map((r) => r.trainingTogether.longestHoldMs)),
        target: { op: '<=', value: 20 },
      },
    );
  }
  tables.push({
    title: `Chat and training together, share ${options.share.share}, ${options.share.rounds} rounds of ${options.share.seconds} s: median (min–max)`,
    columns: [
      'chats',
      'side',
      'alone, tok/s',
      'together, tok/s',
      'together ÷ alone',
      'gap between tokens, ms: p50 / p99 / max',
      'longest hold, ms',
    ],
    rows,
  });
  return {
    tables,
    checks,
    notes: [
      'Together: one process, two threads, the same base weights; the engine decodes without a pause (no think time), which is the hardest case for training. Longest hold: the longest time without a moment at which chat could have had the cores.',
    ],
    data: rounds.map((round) => ({
      ...round,
      chatAlone: { ...round.chatAlone, gapsMs: undefined },
      chatTogether: { ...round.chatTogether, gapsMs: undefined },
    })),
    charts: {},
  };
}

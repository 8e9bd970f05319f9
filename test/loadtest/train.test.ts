/** What the training benchmark computes itself: data, packing, scores and charts. Its runs are measured, not tested. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadModel, TARGETS } from '../../addon/index.ts';
import { publish, runInfo } from '../../loadtest/bench/report.ts';
import { lineChart } from '../../loadtest/bench/train/chart.ts';
import { parseCsv, shuffled, tasksOf, writeInitialA } from '../../loadtest/bench/train/data.ts';
import { type Outcome, tokensPerSecond } from '../../loadtest/bench/train/job.ts';
import { pack, split } from '../../loadtest/bench/train/pack.ts';
import { scoreCorpus } from '../../loadtest/bench/train/scores.ts';
import { parseParts } from '../../loadtest/bench/train/train.ts';
import { decodeTrained, encodeTrained } from '../../loadtest/bench/train/trained.ts';
import { writeTinyModel } from '../support/tiny-models.ts';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(path.join(os.tmpdir(), 'loadtest-train-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe('the data', () => {
  it('is read from CSV whatever its cells hold', () => {
    // RFC 4180 cannot tell a line of one empty cell from an empty line, so the first cell is never empty.
    const cell = fc.string({ unit: fc.constantFrom('a', ' ', ',', '"', '\n', '\r\n', 'é', '£') });
    fc.assert(
      fc.property(fc.array(fc.record({ mr: cell.map((c) => `x${c}`), ref: cell }), { minLength: 1 }), (rows) => {
        const quote = (text: string) => `"${text.replaceAll('"', '""')}"`;
        const text = ['mr,ref', ...rows.map((row) => `${quote(row.mr)},${quote(row.ref)}`)].join('\r\n');
        expect(parseCsv(text)).toEqual(rows);
        expect(parseCsv(`${text}\r\n`)).toEqual(rows);
      }),
    );
    expect(parseCsv('mr,ref\nplain,"two, three"\n')).toEqual([{ mr: 'plain', ref: 'two, three' }]);
  });

  it('groups the wordings of one meaning, and a shuffle loses none', () => {
    const pairs = ['a', 'b', 'a'].map((meaning, i) => ({ meaning, reference: `r${i}` }));
    expect(tasksOf(pairs)).toEqual([
      { meaning: 'a', references: ['r0', 'r2'] },
      { meaning: 'b', references: ['r1'] },
    ]);
    const list = Array.from({ length: 100 }, (_, i) => i);
    expect(shuffled(list, 1)).not.toEqual(list);
    expect(shuffled(list, 1)).toEqual(shuffled(list, 1));
    expect(shuffled(list, 1).sort((x, y) => x - y)).toEqual(list);
  });
});

describe('packing', () => {
  const example = { tokens: [5, 6, 7, 8], prompt: 2 };

  it('weighs exactly the rows that predict an answer token, padded or not', () => {
    const plain = pack([example, example], 0);
    expect([...plain.weights]).toEqual([0, 1, 1, 0, 0, 1, 1, 0]);
    expect([...plain.starts]).toEqual([0, 4, 8]);
    const padded = pack([example], 6);
    expect([...padded.weights]).toEqual([0, 1, 1, 0, 0, 0]);
    expect([...padded.tokens]).toEqual([5, 6, 7, 8, 0, 0]);
    expect([...padded.starts]).toEqual([0, 6]);
  });

  it('splits a batch in order, within the rows, without losing an example', () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 2, max: 30 }), { minLength: 1 }),
        fc.integer({ min: 30, max: 60 }),
        (lengths, rows) => {
          const examples = lengths.map((n) => ({ tokens: Array<number>(n).fill(1), prompt: 1 }));
          const parts = split(examples, 0, rows);
          expect(parts.flat()).toEqual(examples);
          for (const part of parts) expect(pack(part, 0).tokens.length).toBeLessThanOrEqual(rows);
        },
      ),
    );
  });
});

describe('scores', () => {
  it('are those of sacrebleu 2.6 and rouge-score 0.1.2 with several references', () => {
    const references = [
      [
        'There is a place in the city centre, Alimentum, that is not family-friendly.',
        'In the city centre there is a venue name Alimentum, this is not a family-friendly venue.',
      ],
      ['A coffee shop in the city centre area called Blue Spice.', 'Blue Spice is a coffee shop in city centre.'],
      ['Cocum is a highly rated, low-priced (under £20) pub.'],
    ];
    const answers = [
      'Alimentum is a venue in the city centre that is not family-friendly.',
      'Blue Spice is a coffee shop in the city centre area.',
      'Cocum is a pub with low prices, under £20, and it is highly rated.',
    ];
    const scores = scoreCorpus(references, answers);
    expect(scores.bleu).toBeCloseTo(51.94509591631674, 6);
    expect(scores.rouge2).toBeCloseTo(60.12121212121213, 6);
    expect(scores.rougeL).toBeCloseTo(73.82716049382715, 6);
  });
});

describe('a run', () => {
  it('counts tokens per second after the warm-up', () => {
    const steps = [100, 50, 1, 1, 1, 1].map((seconds, i) => ({ step: i + 1, loss: 1, tokens: 200, seconds }));
    expect(tokensPerSecond({ steps } as Outcome)).toBe(200);
  });

  it('starts from an A as large as PEFT’s, and what it trained comes back from its file', () => {
    const tiny = writeTinyModel('llama', path.join(folder, 'tiny.gguf'), { type: 'f32' });
    const model = loadModel({ path: tiny.path, device: 'cpu' });
    const file = path.join(folder, 'a.f32');
    writeInitialA(file, model.info, 4, 1);
    const bytes = readFileSync(file);
    const inputs = TARGETS.reduce((sum, target) => sum + tiny.targets[target].in, 0);
    expect(bytes.length).toBe(4 * 4 * inputs * tiny.layers);
    const first = Float32Array.from({ length: 4 * tiny.targets.attn_q.in }, (_, i) => bytes.readFloatLE(4 * i));
    const bound = 1 / Math.sqrt(tiny.targets.attn_q.in);
    expect(Math.max(...first)).toBeLessThanOrEqual(bound);
    expect(Math.max(...first)).toBeGreaterThan(0.95 * bound);
    // A uniform distribution has the deviation bound / √3.
    expect(Math.sqrt(first.reduce((sum, x) => sum + x * x, 0) / first.length)).toBeCloseTo(bound / Math.sqrt(3), 2);

    const trainer = model.createTrainer({
      method: 'lora',
      targets: ['attn_q', 'ffn_down'],
      rank: 3,
      scale: 2,
      dropout: 0,
      prefixTokens: 1,
      seed: 3,
      rowsMax: 32,
      recompute: false,
      share: 0.5,
    });
    const pairs = trainer.pairs();
    const trained = decodeTrained(encodeTrained({ method: 'lora', rank: 3, scale: 2 }, trainer));
    trainer.close();
    model.close();
    expect(trained.pairs).toHaveLength(2 * tiny.layers);
    trained.pairs.forEach((pair, i) => {
      const a = new Float32Array(trained.file.buffer, pair.a.offset, pairs[i]?.a.length);
      expect(pair).toMatchObject({ target: pairs[i]?.target, layer: pairs[i]?.layer, rank: 3, scale: 2 });
      expect(a).toEqual(pairs[i]?.a);
    });
  });

  it('names the parts there are when asked for one there is not', () => {
    expect(parseParts('speed, share')).toEqual(['speed', 'share']);
    expect(() => parseParts('sped')).toThrow(/there are speed, loss/);
  });
});

describe('charts', () => {
  it('stay within their frame and stand beside the table that names them', () => {
    const svg = lineChart('A & B', { x: 'step', y: 'loss' }, [
      {
        name: '<ours>',
        points: [
          [1, 2.5],
          [2, 2],
          [3, 0.5],
        ],
      },
      {
        name: 'gap',
        points: [
          [1, 1],
          [2, 3],
        ],
      },
    ]);
    const coordinates = [...svg.matchAll(/points="([^"]+)"/g)].flatMap((m) =>
      (m[1] as string).split(' ').map((pair) => pair.split(',').map(Number)),
    );
    expect(coordinates).toHaveLength(5);
    for (const [x, y] of coordinates) {
      expect(x).toBeGreaterThanOrEqual(0);
      expect(x).toBeLessThanOrEqual(720);
      expect(y).toBeGreaterThanOrEqual(0);
      expect(y).toBeLessThanOrEqual(320);
    }
    expect(svg).toContain('A &amp; B');
    expect(svg).toContain('&lt;ours&gt;');
    const report = { name: 'train', tables: [], checks: [], notes: [], data: {}, charts: { loss: svg } };
    const stem = publish(report, runInfo(['train']), folder, () => {});
    expect(readFileSync(`${stem}.md`, 'utf8')).toContain(`![loss](${path.basename(stem)}-loss.svg)`);
    expect(readFileSync(`${stem}-loss.svg`, 'utf8')).toBe(svg);
    expect(JSON.parse(readFileSync(`${stem}.json`, 'utf8'))).not.toHaveProperty('charts');
  });
});

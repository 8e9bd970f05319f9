import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { readGgufHeader } from '../../daemon/models/gguf.ts';
import { randomAdapter, SMOLLM2_135M, writeRandomAdapters } from '../../loadtest/bench/adapters.ts';
import { readReference } from '../../loadtest/bench/libllama.ts';
import { promptSource, qualityPrompts } from '../../loadtest/bench/prompts.ts';
import { holds, mark, publish, type Report, renderMarkdown, renderText, runInfo } from '../../loadtest/bench/report.ts';
import { type Round, type Scenario, SERVE_DEFAULTS, serveReport } from '../../loadtest/bench/serve.ts';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(path.join(os.tmpdir(), 'loadtest-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const SMALL = { ...SMOLLM2_135M, layers: 2 };

describe('random adapters', () => {
  it('are GGUF files that our own reader accepts, with the shapes of the base', () => {
    const [file] = writeRandomAdapters(folder, 1, 3, 1, SMALL);
    const header = readGgufHeader(file as string);
    expect(header.tensors).toHaveLength(2 * 7 * 2);
    const byName = new Map(header.tensors.map((t) => [t.name, t]));
    expect(byName.get('blk.1.ffn_down.weight.lora_a')?.shape.map(Number)).toEqual([1536, 3]);
    expect(byName.get('blk.1.ffn_down.weight.lora_b')?.shape.map(Number)).toEqual([3, 576]);
  });

  it('say truly where their pairs lie', () => {
    const { file, pairs } = randomAdapter(SMALL, 4, 5);
    expect(pairs).toHaveLength(14);
    const deviation = (offset: number, count: number) => {
      const values = new Float32Array(file.buffer, file.byteOffset + offset, count);
      return Math.sqrt(values.reduce((sum, x) => sum + x * x, 0) / count);
    };
    for (const pair of pairs) {
      const [input, output] = SMALL.targets[pair.target];
      expect(deviation(pair.a.offset, pair.rank * input) / 0.02).toBeCloseTo(1, 0);
      expect(deviation(pair.b.offset, pair.rank * output) / 0.01).toBeCloseTo(1, 0);
    }
    const last = pairs.at(-1);
    expect((last?.b.offset ?? 0) + 4 * 4 * 576).toBeLessThanOrEqual(file.length);
  });

  it('depend on the seed and on nothing else', () => {
    expect(randomAdapter(SMALL, 2, 1).file.equals(randomAdapter(SMALL, 2, 1).file)).toBe(true);
    expect(randomAdapter(SMALL, 2, 1).file.equals(randomAdapter(SMALL, 2, 2).file)).toBe(false);
  });
});

describe('prompts', () => {
  it('never repeat within a run, are the same in every run, and start differently', () => {
    const next = promptSource(1, 90);
    const again = promptSource(1, 90);
    const given = Array.from({ length: 500 }, () => next());
    expect(new Set(given).size).toBe(500);
    expect(given.slice(0, 20)).toEqual(Array.from({ length: 20 }, () => again()));
    expect(given[0]?.split(' ')).toHaveLength(90);
    // A shared beginning would let a prefix cache save work.
    expect(new Set(given.map((p) => p.split(' ').slice(0, 4).join(' '))).size).toBeGreaterThan(495);
  });
  it('for quality are at least fifty, all different', () => {
    expect(new Set(qualityPrompts).size).toBeGreaterThanOrEqual(50);
  });
});

describe('the reference file', () => {
  const u32 = (v: number) => {
    const b = Buffer.alloc(4);
    b.writeUInt32LE(v);
    return b;
  };
  const bytes = Buffer.concat([
    Buffer.from('LLG1'),
    ...[2, 2].map(u32),
    ...[3, 7, 8, 9, 1].map(u32),
    Buffer.from(Float32Array.of(0.5, -1, 2, 3).buffer),
    ...[2, 4, 5].map(u32),
    ...[1, 6, 0].map(u32),
    Buffer.from(Float32Array.of(8, 9).buffer),
    u32(0),
  ]);
  it('is read sequence by sequence', () => {
    const file = path.join(folder, 'reference.bin');
    writeFileSync(file, bytes);
    const [first, second] = [...readReference(file)];
    expect(first).toEqual({
      tokens: Int32Array.of(7, 8, 9),
      first: 1,
      logits: [Float32Array.of(0.5, -1), Float32Array.of(2, 3)],
      greedy: Int32Array.of(4, 5),
    });
    expect(second).toEqual({
      tokens: Int32Array.of(6),
      first: 0,
      logits: [Float32Array.of(8, 9)],
      greedy: new Int32Array(0),
    });
  });
  it.each([3, 10, 30, bytes.length - 1])('cut after %i bytes is refused', (length) => {
    const file = path.join(folder, `cut-${length}.bin`);
    writeFileSync(file, bytes.subarray(0, length));
    expect(() => [...readReference(file)]).toThrow(/ends early/);
  });
  it('of another kind is refused', () => {
    const file = path.join(folder, 'other.bin');
    writeFileSync(file, 'GGUF and more');
    expect(() => [...readReference(file)]).toThrow(/not an output/);
  });
});

describe('checks', () => {
  it('know their direction, and what could not be measured is not a pass', () => {
    expect(holds({ name: 'x', value: 2, target: { op: '>=', value: 2 } })).toBe(true);
    expect(holds({ name: 'x', value: 0.34, target: { op: '<=', value: 1 / 3 } })).toBe(false);
    expect(mark({ name: 'x', value: 1.9, target: { op: '>=', value: 2 } })).toBe('✗');
    expect(mark({ name: 'x', value: Number.NaN, target: { op: '>=', value: 2 } })).toBe('not measured');
  });
});

describe('the report of serve', () => {
  const options = { ...SERVE_DEFAULTS, modelPath: '/somewhere/model.gguf' };
  const round = (
    n: number,
    scenario: Scenario['id'],
    side: 'ours' | 'peer',
    tokensPerSecond: number,
    firstTokenMaxMs: number,
  ): Round => ({
    round: n,
    scenario,
    side,
    result: {
      tokensPerSecond,
      firstTokenMaxMs,
      firstTokenP50Ms: firstTokenMaxMs / 2,
      firstTokenMs: [],
      gapP50Ms: 1,
      gapP99Ms: 2,
      gapMaxMs: 3,
      completionTokens: 512,
      promptTokens: 720,
      cachedTokens: 0,
      wallMs: 1,
      events: 512,
    },
  });
  const ids: Scenario['id'][] = ['different', 'base', 'single', 'one-adapter'];
  // The second round ran on a machine half as fast.
  const rounds = [1, 0.5].flatMap((speed, n) =>
    ids.flatMap((id) => [
      round(n, id, 'ours', (id === 'different' ? 150 : 180) * speed, 1000 / speed),
      round(n, id, 'peer', (id === 'different' ? 60 : 200) * speed, 4000 / speed),
    ]),
  );
  it('judges by ratios of neighbouring rounds', () => {
    const marks = Object.fromEntries(
      serveReport(rounds, options, '').checks.map((c) => [c.name, [Number(c.value.toFixed(3)), mark(c)]]),
    );
    expect(marks).toEqual({
      'different adapters, tok/s, ours ÷ llama-server': [2.5, '✓'],
      'different adapters, worst first token, ours ÷ llama-server': [0.25, '✓'],
      'base only, tok/s, ours ÷ llama-server': [0.9, '✗'],
      'one stream, tok/s, ours ÷ llama-server': [0.9, '✓'],
      'our different adapters ÷ our base only, tok/s': [0.833, '✓'],
    });
  });
  it('without a peer says so and checks only what it can', () => {
    const report = serveReport(
      rounds.filter((r) => r.side === 'ours'),
      options,
      'No peer here.',
    );
    expect(report.checks.map((c) => c.name)).toEqual(['our different adapters ÷ our base only, tok/s']);
    expect(report.notes[0]).toBe('No peer here.');
  });
  it('is written as JSON and Markdown without paths of this machine', () => {
    const stem = publish(
      serveReport(rounds, options, ''),
      runInfo(['serve'], { 'llama-server': 'v1' }),
      folder,
      () => {},
    );
    const json = readFileSync(`${stem}.json`, 'utf8');
    const parsed = JSON.parse(json) as Report & { info: { machine: { cores: number }; command: string } };
    expect(parsed.info.machine.cores).toBeGreaterThan(0);
    expect(parsed.info.command).toBe('npm run bench -- serve');
    expect(json).not.toContain('/somewhere');
    expect(readFileSync(`${stem}.md`, 'utf8')).toContain(
      '| our different adapters ÷ our base only, tok/s | 0.833 | ≥ 0.75 | ✓ |',
    );
  });
});

it('tables line up in text and escape bars in Markdown', () => {
  const table = {
    title: 'T',
    columns: ['a', 'b'],
    rows: [
      ['größe', '1'],
      ['x|y', '22'],
    ],
  };
  expect(renderText(table)).toBe('T\na      b\n─────  ──\ngröße  1\nx|y    22');
  expect(renderMarkdown(table)).toContain('| x\\|y | 22 |');
});

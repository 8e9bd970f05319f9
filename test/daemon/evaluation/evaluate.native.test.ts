/** Whole evaluations over HTTP: a real (tiny) model, real adapters, real batches. */
import { existsSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadModel } from '../../../addon/index.ts';
import { encodeExample } from '../../../daemon/evaluation/encode.ts';
import { ReportStore } from '../../../daemon/evaluation/report-store.ts';
import { scoreAnswer } from '../../../daemon/evaluation/scores.ts';
import type { EvaluationEvent, EvaluationReport, TrainingExample } from '../../../daemon/protocol.ts';
import { CALLER, type EvaluationRig, startEvaluationRig } from './rig.ts';

let rig: EvaluationRig;
let digestA: string;
const WORDS = 'the cat sat on the mat and then it was in the house of other people who are at sea'.split(' ');
const chatExamples = (count: number): TrainingExample[] =>
  Array.from({ length: count }, (_, i) => ({
    kind: 'chat',
    messages: [
      { role: 'user', content: `say ${WORDS[i % WORDS.length]} ${i}` },
      { role: 'assistant', content: WORDS.slice(i % 5, (i % 5) + 4).join(' ') },
    ],
  }));

beforeAll(async () => {
  rig = await startEvaluationRig();
  digestA = await rig.adapter('a', { rank: 4, deviation: 0.2, seed: 3 });
  await rig.adapter('b', { rank: 8, deviation: 0.2, seed: 4 });
});
afterAll(() => rig.close());

function reportOf(events: EvaluationEvent[]): EvaluationReport {
  const last = events.at(-1);
  if (last?.type !== 'report') throw new Error(`no report but ${JSON.stringify(last)}`);
  return last.report;
}
const progressOf = (events: EvaluationEvent[]) =>
  events.filter((event): event is Extract<EvaluationEvent, { type: 'progress' }> => event.type === 'progress');

describe('evaluations', () => {
  it('compare base and adapters on the same examples, with intervals, progress and receipts', async () => {
    const examples = chatExamples(12);
    const dataset = await rig.dataset(examples);
    const receiptsBefore = rig.receipts.receipts.size;
    const events = await rig.evaluate({ dataset, models: [null, 'a', 'b'], maxTokens: 12 });
    const report = reportOf(events);
    expect(report.examples).toBe(12);
    expect(report.unanswered).toBe(0);
    expect(report.scores.map(({ model }) => model)).toEqual([null, 'a', 'b']);
    expect(report.scores[1]?.adapterDigest).toBe(digestA);
    for (const one of report.scores) {
      for (const name of [
        'loss',
        'perplexity',
        'tokenAccuracy',
        'rouge1',
        'rouge2',
        'rougeL',
        'bleu',
        'exactMatch',
      ] as const) {
        const { value, low, high } = one[name] as { value: number; low: number; high: number };
        expect(Number.isFinite(value), name).toBe(true);
        expect(low).toBeLessThanOrEqual(value + 1e-9);
        expect(high).toBeGreaterThanOrEqual(value - 1e-9);
      }
      expect(one.perplexity.value).toBeCloseTo(Math.exp(one.loss.value), 6);
      expect(one.loss.low).toBeLessThan(one.loss.high);
    }
    const losses = new Set(report.scores.map(({ loss }) => loss.value.toFixed(4)));
    expect(losses.size).toBe(3);
    // Each answer left its own receipt, under the caller's hash.
    expect(rig.receipts.receipts.size - receiptsBefore).toBe(36);
    expect([...rig.receipts.receipts.values()].every(({ callerHash }) => callerHash === CALLER)).toBe(true);
    expect(report.usage.completionTokens).toBeGreaterThan(36);
    const progress = progressOf(events);
    expect(progress[0]).toMatchObject({ phase: 'score', done: 0, total: 72, model: null, secondsLeft: null });
    expect(progress.map(({ done }) => done)).toEqual(progress.map(({ done }) => done).toSorted((x, y) => x - y));
    // Samples are the answers themselves.
    expect(report.samples).toHaveLength(12);
    expect(report.samples[0]).toMatchObject({ prompt: 'say the 0', reference: 'the cat sat on' });
    const rougeL = report.samples.reduce(
      (sum, { reference, answers }) => sum + scoreAnswer(reference, answers[1]?.text ?? '').rougeL / 12,
      0,
    );
    expect(report.scores[1]?.rougeL?.value).toBeCloseTo(rougeL, 9);
  });

  it('the loss is that of the logits of each sequence', async () => {
    const examples = chatExamples(4);
    const { scores } = reportOf(
      await rig.evaluate({ dataset: await rig.dataset(examples), models: [null], generate: false }),
    );
    const model = loadModel({ path: rig.modelPath, device: 'cpu' });
    const engine = model.createEngine({ kvCells: 512, sequencesMax: 2, batchTokensMax: 256, slots: 0, slotRankMax: 1 });
    let loss = 0;
    let count = 0;
    let hits = 0;
    for (const example of examples) {
      for (const { tokens, rated } of encodeExample(example, rig.vocabulary, rig.contextTokens)) {
        const rows = Int32Array.from(tokens, (_, i) => i);
        const none = new Int32Array(tokens.length).fill(-1);
        const zero = new Int32Array(tokens.length);
        const { logits = new Float32Array() } = engine.step({
          tokens,
          positions: rows,
          sequences: zero,
          slots: none,
          outputs: rows,
          samplers: none,
          wantLogits: true,
        });
        engine.trimSequence(0, 0);
        const width = logits.length / tokens.length;
        for (let i = 0; i + 1 < tokens.length; i += 1) {
          if (rated[i] !== 1) continue;
          const row = [...logits.subarray(i * width, (i + 1) * width)];
          const best = Math.max(...row);
          const sum = row.reduce((total, x) => total + Math.exp(x - best), 0);
          loss -= (row[tokens[i + 1] as number] as number) - best - Math.log(sum);
          hits += row.indexOf(best) === tokens[i + 1] ? 1 : 0;
          count += 1;
        }
      }
    }
    engine.close();
    model.close();
    expect(count).toBeGreaterThan(20);
    expect(Math.abs((scores[0]?.loss.value ?? 0) - loss / count)).toBeLessThan(2e-3);
    expect(scores[0]?.tokenAccuracy.value).toBeCloseTo(hits / count, 1);
    expect(scores[0]?.rougeL).toBeUndefined();
  });

  it('an adapter evaluated twice with the same seed gives the same report', async () => {
    const dataset = await rig.dataset(chatExamples(9));
    const body = { dataset, models: ['a'], maxTokens: 8, examplesMax: 5, seed: 11 };
    const [one, two] = [reportOf(await rig.evaluate(body)), reportOf(await rig.evaluate(body))];
    expect(one.examples).toBe(5);
    expect(two.samples.map(({ prompt }) => prompt)).toEqual(one.samples.map(({ prompt }) => prompt));
    expect(two.scores[0]?.loss.value).toBeCloseTo(one.scores[0]?.loss.value ?? 0, 3);
    expect(two.id).not.toBe(one.id);
  });

  it('graders: checks, similarities, embeddings and a judge that is one of the served models', async () => {
    const completions: TrainingExample[] = Array.from({ length: 4 }, (_, i) => ({
      kind: 'completion',
      prompt: `${WORDS[i]} `,
      completion: `${WORDS[i + 1]} ${WORDS[i + 2]}`,
    }));
    const both = { input: '{{ sample.output_text }}', reference: '{{item.reference}}' };
    const report = reportOf(
      await rig.evaluate({
        dataset: await rig.dataset(completions),
        models: [null, 'a'],
        maxTokens: 6,
        graders: [
          { type: 'string_check', name: 'differs', operation: 'ne', ...both },
          { type: 'text_similarity', name: 'fuzzy', evaluation_metric: 'fuzzy_match', ...both },
          { type: 'text_similarity', name: 'near', evaluation_metric: 'cosine', ...both, input: '{{item.reference}}' },
          { type: 'string_check', name: 'missing', operation: 'eq', ...both, input: '{{ item.nothing }}' },
          {
            type: 'score_model',
            name: 'judge',
            model: 'b',
            range: [-1e12, 1e12],
            input: [{ role: 'user', content: 'Rate {{sample.output_text}} against {{item.reference}}' }],
          },
        ],
      }),
    );
    for (const { graders, graderFailures } of report.scores) {
      expect(graders.differs?.value).toBe(1);
      expect(graders.fuzzy?.value).toBeGreaterThanOrEqual(0);
      expect(graders.near?.value).toBeCloseTo(1, 4);
      expect(graders.missing?.value).toBe(0);
      expect(graderFailures).toMatchObject({ differs: 0, fuzzy: 0, near: 0, missing: 4 });
      expect(Number.isFinite(graders.judge?.value)).toBe(true);
    }
    // Judges and embeddings leave receipts too.
    const kinds = [...rig.receipts.receipts.values()].filter(({ requestId }) => requestId.startsWith(report.id));
    expect(kinds.filter(({ kind }) => kind === 'embedding')).toHaveLength(8);
    expect(kinds.filter(({ kind }) => kind === 'chat')).toHaveLength(8);
    expect(kinds.filter(({ kind }) => kind === 'completion')).toHaveLength(8);
  });

  it('one grader alone answers with its score, and says why where it cannot', async () => {
    const run = async (extra: object) => {
      const body = {
        requestId: `grade_${Math.random().toString(36).slice(2)}`,
        callerHash: CALLER,
        price: { inputMicrosPerMillion: 1_000_000, outputMicrosPerMillion: 1_000_000, currency: 'USD' },
        item: { label: 'yes', list: [{ name: 'first' }] },
        sample: '{"answer": "yes"}',
        ...extra,
      };
      return (await (await rig.call('POST', '/graders/run', body)).json()) as Record<string, unknown>;
    };
    const check = { type: 'string_check', name: 'n', operation: 'eq', reference: '{{ item.label }}' };
    expect(await run({ grader: { ...check, input: '{{ sample.output_json.answer }}' } })).toMatchObject({
      score: 1,
      failure: null,
    });
    expect(await run({ grader: { ...check, input: 'first', reference: '{{item.list[0].name}}' } })).toMatchObject({
      score: 1,
    });
    expect(await run({ grader: { ...check, input: '{{item.constructor}}' } })).toMatchObject({
      score: 0,
      failure: { kind: 'invalid_variable' },
    });
    expect(await run({ grader: { ...check, input: '{{ process.env }}' } })).toMatchObject({ error: { status: 400 } });
    const judged = await run({
      grader: {
        type: 'score_model',
        name: 'j',
        model: 'tiny',
        range: [0, 1e-300],
        input: [{ role: 'user', content: 'x' }],
      },
    });
    // A number, and one outside of the range is no score.
    expect(Number.parseFloat(String(judged.judged))).not.toBeNaN();
    expect(judged).toMatchObject({ score: 0, failure: { kind: 'model_parse' } });
    expect(judged.costMicros).toBeGreaterThan(0);
    expect(
      await run({
        grader: { type: 'score_model', name: 'j', model: 'nobody', input: [{ role: 'user', content: 'x' }] },
      }),
    ).toMatchObject({
      error: { status: 404 },
    });
  });

  it('reports survive, are found by adapter, and damage is not served', async () => {
    const dataset = await rig.dataset(chatExamples(2));
    const { id } = reportOf(await rig.evaluate({ id: 'kept-1', dataset, models: ['b'], generate: false }));
    expect(id).toBe('kept-1');
    const again = await rig.call('POST', '/evaluations', { id, dataset, models: ['b'], callerHash: CALLER });
    expect(again.status).toBe(409);
    const listed = (await (await rig.call('GET', '/evaluations?adapter=b')).json()) as { data: EvaluationReport[] };
    expect(listed.data.map((report) => report.id)).toContain('kept-1');
    const ofA = (await (await rig.call('GET', '/evaluations?adapter=a')).json()) as { data: EvaluationReport[] };
    expect(ofA.data.map((report) => report.id)).not.toContain('kept-1');
    expect((await rig.call('GET', '/evaluations?adapter=nobody')).status).toBe(404);
    expect((await rig.call('GET', '/evaluations/..%2F..%2Fetc')).status).toBe(404);

    writeFileSync(join(rig.folder, 'evaluations', 'half.json'), '{"id":"half","sco');
    writeFileSync(join(rig.folder, 'evaluations', 'x.json.tmp'), 'x');
    const store = await ReportStore.open(rig.folder);
    expect((await store.get('kept-1'))?.scores).toHaveLength(1);
    expect(await store.get('half')).toBeNull();
    expect(existsSync(join(rig.folder, 'evaluations', 'x.json.tmp'))).toBe(false);
  });

  it('ends within moments when the caller leaves: no report, nothing left in the engine', async () => {
    const dataset = await rig.dataset(chatExamples(200));
    const abort = new AbortController();
    const before = readdirSync(join(rig.folder, 'evaluations')).length;
    const response = await rig.call(
      'POST',
      '/evaluations',
      { id: 'left-1', dataset, models: [null, 'a'], maxTokens: 200, callerHash: CALLER },
      abort.signal,
    );
    const reader = (response.body as ReadableStream<Uint8Array>).getReader();
    await reader.read();
    abort.abort();
    await expect.poll(() => rig.engine.jobCount).toBe(0);
    // The id is free again: nothing was kept of it.
    expect((await rig.call('GET', '/evaluations/left-1')).status).toBe(404);
    expect(readdirSync(join(rig.folder, 'evaluations'))).toHaveLength(before);
  });

  it('bad requests get a status of their own, before anything is computed', async () => {
    const dataset = await rig.dataset(chatExamples(2));
    const status = async (body: object) => {
      const response = await rig.call('POST', '/evaluations', { dataset, models: [null], callerHash: CALLER, ...body });
      const { error } = (await response.json()) as { error: { message: string; param: string | null } };
      return [response.status, error.message, error.param] as const;
    };
    expect((await status({ dataset: 'f'.repeat(64) }))[0]).toBe(404);
    expect((await status({ models: ['nobody'] }))[0]).toBe(404);
    expect(await status({ models: [null, null] })).toMatchObject([400, 'a model is named twice', 'models']);
    expect((await status({ models: [] }))[0]).toBe(400);
    // A data set without examples does not even come this far.
    await expect(rig.dataset([])).rejects.toThrow();
    const grader = { type: 'string_check', name: 'n', operation: 'eq', input: '{{ sample.output_text', reference: 'x' };
    expect((await status({ graders: [grader] }))[1]).toMatch(/without its/);
    const fine = { ...grader, input: 'x' };
    expect((await status({ graders: [fine, fine] }))[1]).toMatch(/two graders/);
    expect((await status({ graders: [fine], generate: false }))[1]).toMatch(/generate/);
    expect((await status({ graders: [{ ...fine, type: 'python' }] }))[0]).toBe(400);
  });

  it('prompts that fill the context are left out of the answers, for every model alike', async () => {
    const long = 'x y z '.repeat(200);
    const examples: TrainingExample[] = [
      ...chatExamples(2),
      {
        kind: 'chat',
        messages: [
          { role: 'user', content: long },
          { role: 'assistant', content: 'ok' },
        ],
      },
      // Nobody answers: nothing to compare with.
      {
        kind: 'chat',
        messages: [
          { role: 'user', content: 'hi' },
          { role: 'assistant', content: 'no', weight: 0 },
        ],
      },
    ];
    const report = reportOf(
      await rig.evaluate({ dataset: await rig.dataset(examples), models: [null, 'a'], maxTokens: 4 }),
    );
    expect(report.examples).toBe(4);
    expect(report.unanswered).toBe(2);
    expect(report.scores[0]?.rougeL).toBeDefined();
  });
});

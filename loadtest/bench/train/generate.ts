/** Greedy answers of many prompts through the serving engine, with an adapter, a prefix, or neither. */
import type { Engine, Model, SamplerOptions, StepBatch, Vocabulary } from '../../../addon/index.ts';
import type { Trained } from './trained.ts';

const TOGETHER = 16;
const SLOT = 0;
const BATCH_TOKENS = 512;
const UTF8 = new TextDecoder();

const GREEDY: SamplerOptions = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  repeatPenalty: 1,
  frequencyPenalty: 0,
  presencePenalty: 0,
  penaltyLast: 0,
  logitBias: [],
  seed: 1,
  topLogprobs: -1,
  ignoreEos: false,
  grammar: '',
  grammarLazy: false,
  grammarTriggers: [],
  grammarPrefill: '',
};

interface Row {
  sequence: number;
  token: number;
  position: number;
  slot: number;
  sampler: number;
}

function batchOf(rows: readonly Row[]): StepBatch {
  const wanted = rows.map((row, i) => (row.sampler >= 0 ? i : -1)).filter((i) => i >= 0);
  return {
    tokens: Int32Array.from(rows, (row) => row.token),
    positions: Int32Array.from(rows, (row) => row.position),
    sequences: Int32Array.from(rows, (row) => row.sequence),
    slots: Int32Array.from(rows, (row) => row.slot),
    outputs: Int32Array.from(wanted),
    samplers: Int32Array.from(wanted, (i) => (rows[i] as Row).sampler),
  };
}

/** A sequence that is being written. */
interface Running {
  index: number;
  sequence: number;
  sampler: number;
  position: number;
  next: number;
  tokens: number[];
}

export interface GenerateOptions {
  trained?: Trained | undefined;
  tokensMax: number;
}

/** Answers in the order of the prompts, without the end token. */
export async function generate(
  model: Model,
  vocabulary: Vocabulary,
  prompts: readonly Int32Array[],
  options: GenerateOptions,
): Promise<string[]> {
  const { trained, tokensMax } = options;
  const prefixWidth = model.info.kvHeads * model.info.headDim;
  const prefix = trained?.prefix.length ? (trained.prefix[0]?.k.length ?? 0) / prefixWidth : 0;
  const longest = Math.max(...prompts.map((p) => p.length));
  const engine = model.createEngine({
    kvCells: TOGETHER * (longest + tokensMax) + 2 * prefix + 64,
    sequencesMax: TOGETHER + 1,
    batchTokensMax: BATCH_TOKENS,
    slots: 1,
    slotRankMax: Math.max(1, ...(trained?.pairs ?? []).map((pair) => pair.rank)),
  });
  try {
    const slot = trained?.pairs.length ? SLOT : -1;
    if (trained?.pairs.length) {
      const image = await model.buildAdapter(trained.file, trained.pairs);
      engine.setSlot(SLOT, image);
      image.release();
    }
    if (prefix > 0) engine.loadPrefix(TOGETHER, trained?.prefix ?? []);
    const answers: string[] = [];
    const ends = new Set(vocabulary.endTokens);
    const start = (index: number, sequence: number): Running => {
      engine.trimSequence(sequence, 0);
      if (prefix > 0) engine.shareSequence(TOGETHER, sequence, prefix);
      const sampler = engine.createSampler(GREEDY);
      const prompt = prompts[index] as Int32Array;
      const next = readPrompt(engine, prompt, { sequence, slot, sampler, position: prefix });
      return { index, sequence, sampler, position: prefix + prompt.length, next, tokens: [] };
    };
    const free = Array.from({ length: TOGETHER }, (_, i) => i);
    let running: Running[] = [];
    let waiting = 0;
    while (waiting < prompts.length || running.length > 0) {
      while (waiting < prompts.length && free.length > 0) running.push(start(waiting++, free.pop() as number));
      running = running.filter((r) => {
        if (!ends.has(r.next) && r.tokens.length < tokensMax) return true;
        answers[r.index] = textOf(vocabulary, r.tokens);
        engine.freeSampler(r.sampler);
        engine.trimSequence(r.sequence, 0);
        free.push(r.sequence);
        return false;
      });
      if (running.length === 0) continue;
      const rows = running.map((r) => ({
        sequence: r.sequence,
        token: r.next,
        position: r.position,
        slot,
        sampler: r.sampler,
      }));
      const { choices } = engine.step(batchOf(rows));
      running.forEach((r, i) => {
        r.tokens.push(r.next);
        r.position += 1;
        r.next = choices[i]?.token as number;
      });
    }
    return answers;
  } finally {
    engine.close();
  }
}

/** Returns the first token of the answer. */
function readPrompt(
  engine: Engine,
  prompt: Int32Array,
  at: { sequence: number; slot: number; sampler: number; position: number },
): number {
  let token = -1;
  for (let done = 0; done < prompt.length; done += BATCH_TOKENS) {
    const part = prompt.subarray(done, done + BATCH_TOKENS);
    const rows = [...part].map((t, i) => ({
      sequence: at.sequence,
      token: t,
      position: at.position + done + i,
      slot: at.slot,
      sampler: done + i === prompt.length - 1 ? at.sampler : -1,
    }));
    const { choices } = engine.step(batchOf(rows));
    token = choices.at(-1)?.token ?? token;
  }
  return token;
}

function textOf(vocabulary: Vocabulary, tokens: readonly number[]): string {
  return UTF8.decode(Buffer.concat(tokens.map((token) => vocabulary.tokenBytes(token, false)))).trim();
}

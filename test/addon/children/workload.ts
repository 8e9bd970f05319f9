/** A compact run through everything the addon does, for the sanitizers: models, mixed batches, adapters, samplers, errors. */
import { existsSync, writeFileSync } from 'node:fs';
import { loadModel, openVocabulary } from '../../../addon/index.ts';
import { TINY_ARCHITECTURES, writeTinyModel } from '../../support/tiny-models.ts';
import { batchOf, ENGINE, errorCode, GREEDY, loraFor, putAdapter, randomTokens, temporaryFolder } from '../rig.ts';

const folder = temporaryFolder();
if (!existsSync(folder.path)) throw new Error('no folder');
for (const [i, architecture] of TINY_ARCHITECTURES.entries()) {
  for (const type of ['f32', 'q4_1', 'q8_0'] as const) {
    const tiny = writeTinyModel(architecture, `${folder.path}/${architecture}-${type}.gguf`, { type });
    for (const exact of [false, true]) {
      const model = loadModel({ path: tiny.path, device: 'cpu', exact });
      const engine = model.createEngine({ ...ENGINE, kvCells: 130, slots: 3, kvType: i % 2 ? 'f32' : 'f16' });
      await putAdapter(model, engine, 0, tiny, { rank: 1, seed: 1 });
      await putAdapter(model, engine, 1, tiny, { rank: 13, seed: 2, targets: ['attn_k', 'ffn_gate', 'ffn_down'] });
      const t = (count: number) => randomTokens(count, tiny.vocabulary, count);
      const samplers = [
        { temperature: 1, topK: 7, topP: 0.9, minP: 0.01, topLogprobs: 5 },
        { temperature: 1.5, repeatPenalty: 1.1, frequencyPenalty: 0.5, logitBias: [{ token: 3, bias: 2 }] },
        { grammar: 'root ::= [a-z]+ "." ', temperature: 1 },
      ].map((options) => engine.createSampler({ ...GREEDY, ...options }));
      const step = (parts: Parameters<typeof batchOf>[0], options = {}) => engine.step(batchOf(parts, options));
      step([
        { sequence: 0, slot: 0, tokens: t(41), position: 0, outputs: 'last', sampler: samplers[0] as number },
        { sequence: 1, slot: 1, tokens: t(17), position: 0, outputs: 'none' },
        { sequence: 2, slot: -1, tokens: t(9), position: 0 },
      ]);
      engine.shareSequence(0, 3, 40);
      engine.trimSequence(0, 0);
      for (let n = 0; n < 3; n++) {
        step([
          { sequence: 3, slot: 0, tokens: t(1), position: 40 + n, sampler: samplers[1] as number },
          { sequence: 1, slot: 1, tokens: t(5), position: 17 + 5 * n, outputs: 'last', sampler: samplers[2] as number },
          { sequence: 2, slot: -1, tokens: t(1), position: 9 + n, sampler: samplers[0] as number },
        ]);
      }
      step([{ sequence: 2, tokens: t(2), position: 12, outputs: 'last' }], { wantHidden: true });
      errorCode(() => step([{ sequence: 4, tokens: [1 << 28], position: 0 }]));
      errorCode(() => step([{ sequence: 4, tokens: t(129), position: 0 }]));
      errorCode(() => engine.createSampler({ ...GREEDY, grammar: 'root ::= (' }));
      const { file, pairs } = loraFor(tiny, { rank: 2, seed: 5 });
      await model.buildAdapter(file.subarray(0, file.length - 9), pairs).then(
        () => {
          throw new Error('a short file was taken');
        },
        () => undefined,
      );
      const path = `${folder.path}/adapter.gguf`;
      writeFileSync(path, file);
      const image = await model.loadAdapter(path, pairs);
      engine.setSlot(2, image);
      image.release();
      step([{ sequence: 5, slot: 2, tokens: t(7), position: 0, outputs: 'last' }]);
      engine.clearSlot(2);
      file.writeFloatLE(Number.NaN, file.length - 4);
      writeFileSync(path, file);
      await model.loadAdapter(path, pairs).then(
        () => {
          throw new Error('a weight that is not a number was taken');
        },
        () => undefined,
      );
      // Half precision at odd addresses, rows in PEFT's order, no GGUF: the same zeros for all.
      const { in: input, out } = tiny.targets.attn_q;
      const halves = (dtype: 'f16' | 'bf16') => ({ offset: 1, dtype });
      const half = { target: 'attn_q', layer: 0, rank: 3, scale: 1, permuteHeads: tiny.heads } as const;
      const zeros = await model.buildAdapter(Buffer.alloc(1 + 2 * 3 * Math.max(input, out)), [
        { ...half, a: halves('f16'), b: halves('bf16') },
      ]);
      engine.setSlot(2, zeros);
      step([
        { sequence: 6, slot: 2, tokens: t(3), position: 0, outputs: 'last' },
        { sequence: 5, slot: 0, tokens: t(2), position: 7 },
      ]);
      zeros.release();
      for (const sampler of samplers) engine.freeSampler(sampler);
      engine.clearSlot(0);
      engine.close();
      model.close();
    }
    const vocabulary = openVocabulary(tiny.path);
    vocabulary.tokenize('The quick <|im_start|> brown fox – naïve', { special: true, addBos: true });
    vocabulary.tokenBytes(5, true);
    vocabulary.schemaToGrammar('{"type":"array","items":{"type":"integer"}}');
    vocabulary.close();
  }
}
folder.remove();
console.log('finished');

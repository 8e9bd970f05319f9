/** Prompts for measuring: ordinary English words in random order, never twice the same, so that no prefix cache can help. */
import { type Random, seededRandom } from './random.ts';

// Each word is one token with a leading blank in GPT-2-style vocabularies, so words ≈ tokens.
const WORDS = (
  'the of and to in is was for on with as by at from it that this are be or an which have had not but were they one all ' +
  'their has first new also two more other when there can after into most some time city people world years year state ' +
  'school over only known many during part work made later number under while between small large family water house ' +
  'river long life book music game team season history local public country south north east west century university ' +
  'group member film series story name home night road light company service building food field area land king church ' +
  'party law power system science study research language early late high low open near young old great good best next'
).split(' ');

/** `words` random words. The generator's state makes prompts of one run differ from each other. */
export function randomPrompt(random: Random, words: number): string {
  const picked: string[] = [];
  for (let i = 0; i < words; i++) picked.push(WORDS[random.integer(0, WORDS.length)] as string);
  const text = picked.join(' ');
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** A source of prompts that never repeats itself within a run. */
export function promptSource(seed: number, words: number): () => string {
  const random = seededRandom(seed);
  const given = new Set<string>();
  return () => {
    for (;;) {
      const prompt = randomPrompt(random, words);
      if (given.has(prompt)) continue;
      given.add(prompt);
      return prompt;
    }
  };
}

/** Prompts a person might write, for comparing quality; real text, because random words give flat distributions. */
const SUBJECTS = [
  'the capital of France',
  'photosynthesis',
  'the French Revolution',
  'prime numbers',
  'how bread is baked',
  'the water cycle',
  'the rules of chess',
  'why the sky is blue',
  'the theory of evolution',
  'how a bicycle stays upright',
  'a lighthouse keeper and a storm',
  'electric cars',
  'the history of paper',
];
// The default model answers chats, so half of the prompts are chats in its own template and half plain text to continue.
const asChat = (text: string) => `<|im_start|>user\n${text}<|im_end|>\n<|im_start|>assistant\n`;
const FRAMES = [
  (subject: string) => asChat(`Explain ${subject} to a child in two sentences.`),
  (subject: string) => asChat(`What should everybody know about ${subject}?`),
  (subject: string) => `Once upon a time, somebody asked about ${subject}, and the answer was`,
  (subject: string) => `Here is a numbered list of five facts about ${subject}:\n1.`,
];
/** 52 different prompts, the same in every run; to be tokenised with special tokens. */
export const qualityPrompts: readonly string[] = SUBJECTS.flatMap((subject) => FRAMES.map((frame) => frame(subject)));

/**
 * Questions and answers about invented places, guilds and machines: English by its grammar and its small words, with names, numbers and a
 * few rare words, so that language detection, search and near-duplicate hashing have what they have in life. Seeded.
 */
import type { Random } from './random.ts';

const list = (text: string): string[] => text.trim().split(/\s+/);

const NOUNS =
  list(`river harbour market bridge library engine garden valley school tower mill railway festival museum theatre
  council hospital orchard canal lighthouse workshop bakery quarry forest station castle vineyard archive observatory warehouse
  factory laboratory church prison monastery shipyard reservoir pasture village province island kingdom parliament court army
  merchant captain farmer teacher doctor painter mason blacksmith weaver baker sailor soldier judge poet composer engineer
  chemist botanist historian librarian clerk treaty law tax harvest flood drought war peace trade coin salt copper iron timber
  wool silk grain wine cheese honey paper glass leather pottery rope clock compass telescope loom pump furnace turbine bicycle
  carriage barge ferry tunnel road gate wall roof window stair cellar kitchen chapel square fountain statue bell lantern`);
const ADJECTIVES =
  list(`old small narrow famous quiet busy wealthy poor northern southern eastern western steep fertile dry cold
  warm early late modern medieval wooden stone iron public private royal local foreign broken restored abandoned crowded peaceful
  dangerous valuable ordinary rare common heavy light deep shallow bright dark open closed long short wide strong weak simple
  complicated expensive cheap important forgotten popular careful honest clever stubborn`);
const VERBS =
  list(`built repaired sold bought painted moved closed opened visited described measured governed defended destroyed
  rebuilt founded abandoned studied inspected supplied connected crossed divided protected replaced copied improved designed
  recorded counted named lost found rented borrowed taught heated lit filled emptied widened shortened`);
const MANNERS =
  list(`slowly quickly carefully secretly openly rarely often eventually reluctantly gladly cheaply poorly well together
  alone twice again`);
const SYLLABLES =
  list(`al ba bel cor dan del dor el en fal gar hal il jor kal lan lor mar mel mor nal nor ol per qua ral ros sal
  sel sor tal tar tor ul val ven vor wen yor zan`);
const ENDINGS = list('ton ford bury holm wick mouth field burg stad dale haven gate mere');

const pick = <T>(random: Random, from: readonly T[]): T => from[random.integer(0, from.length)] as T;
const capital = (word: string) => word.charAt(0).toUpperCase() + word.slice(1);

function place(random: Random): string {
  // Some places are on everybody's lips, most are named once or twice.
  const rank = Math.floor(20_000 ** random.next());
  const [a, b] = [
    SYLLABLES[rank % SYLLABLES.length],
    SYLLABLES[Math.floor(rank / SYLLABLES.length) % SYLLABLES.length],
  ];
  return capital(`${a}${b}${ENDINGS[Math.floor(rank / SYLLABLES.length ** 2) % ENDINGS.length]}`);
}

function sentence(random: Random): string {
  const noun = () => pick(random, NOUNS);
  const thing = () => (random.next() < 0.5 ? `${pick(random, ADJECTIVES)} ${noun()}` : noun());
  const year = () => random.integer(1203, 1998);
  switch (random.integer(0, 8)) {
    case 0:
      return `The ${thing()} of ${place(random)} was ${pick(random, VERBS)} in ${year()} by the ${thing()} and the ${noun()}.`;
    case 1:
      return `In ${place(random)} they ${pick(random, MANNERS)} ${pick(random, VERBS)} the ${thing()}, because the ${noun()} had been too ${pick(random, ADJECTIVES)}.`;
    case 2:
      return `It took ${random.integer(2, 90)} years until a ${thing()} from ${place(random)} ${pick(random, VERBS)} it.`;
    case 3:
      return `Most people who lived near the ${noun()} never saw a ${thing()}, but about ${random.integer(100, 9000)} of them ${pick(random, VERBS)} the ${noun()}.`;
    case 4:
      return `When the ${thing()} was ${pick(random, VERBS)}, its ${noun()} cost ${random.integer(3, 4000)} silver pieces and the ${noun()} had to be ${pick(random, VERBS)} ${pick(random, MANNERS)}.`;
    case 5:
      return `Visitors usually come for the ${thing()}, although the ${noun()} behind it is more ${pick(random, ADJECTIVES)} than the one in ${place(random)}.`;
    case 6:
      return `After ${year()} there was neither a ${noun()} nor a ${thing()} left, and the ${noun()} of ${place(random)} was ${pick(random, VERBS)} instead.`;
    default:
      return `You should know that every ${thing()} needs a ${noun()}, which is why they ${pick(random, VERBS)} one in ${year()}.`;
  }
}

const ASKED = [
  (r: Random) => `What happened to the ${pick(r, NOUNS)} of ${place(r)} in ${r.integer(1203, 1998)}?`,
  (r: Random) => `Why was the ${pick(r, ADJECTIVES)} ${pick(r, NOUNS)} in ${place(r)} ${pick(r, VERBS)}?`,
  (r: Random) => `Can you tell me who ${pick(r, VERBS)} the ${pick(r, NOUNS)} near ${place(r)}?`,
  (r: Random) => `How does a ${pick(r, NOUNS)} become ${pick(r, ADJECTIVES)}, and what has ${place(r)} to do with it?`,
  (r: Random) => `Please describe the ${pick(r, ADJECTIVES)} ${pick(r, NOUNS)} of ${place(r)}.`,
];

export interface Chat {
  messages: { role: 'user' | 'assistant'; content: string }[];
}

const chat = (question: string, answer: string): Chat => ({
  messages: [
    { role: 'user', content: question },
    { role: 'assistant', content: answer },
  ],
});

/** One of a hundred is the same as a row before, two of a hundred are one of them with a sentence more. */
export function* chats(count: number, random: Random): Generator<Chat> {
  const kept: Chat[] = [];
  for (let i = 0; i < count; i++) {
    const luck = random.next();
    const before = kept.length > 0 ? pick(random, kept) : null;
    const [asked, said] = before?.messages ?? [];
    if (luck < 0.01 && before !== null) yield before;
    else if (luck < 0.03 && asked && said) yield chat(asked.content, `${said.content} That is all.`);
    else {
      const sentences = Array.from({ length: random.integer(2, 7) }, () => sentence(random));
      const fresh = chat(pick(random, ASKED)(random), sentences.join(' '));
      if (kept.length < 5_000) kept.push(fresh);
      yield fresh;
    }
  }
}

/** Longer rows out of a stock of sentences, quickly: for files of which only the size matters. */
export function* longChats(bytes: number, rowBytes: number, random: Random): Generator<string> {
  const stock = Array.from({ length: 20_000 }, () => sentence(random));
  for (let written = 0; written < bytes; ) {
    let answer = '';
    while (answer.length < rowBytes - 200) answer += `${pick(random, stock)} `;
    const line = `${JSON.stringify(chat(pick(random, ASKED)(random), answer.trimEnd()))}\n`;
    written += line.length;
    yield line;
  }
}

export interface Catalogued {
  name: string;
  summary: string;
  description: string;
  tags: string[];
}

export function catalogued(number: number, random: Random): Catalogued {
  const tags = ['history', 'law', 'medicine', 'trade', 'cooking', 'music', 'sailing', 'farming', 'physics', 'poetry'];
  return {
    name: `${capital(pick(random, ADJECTIVES))} ${pick(random, NOUNS)} of ${place(random)} ${number}`,
    summary: sentence(random),
    description: Array.from({ length: random.integer(3, 15) }, () => sentence(random)).join('\n\n'),
    tags: [pick(random, tags), pick(random, tags)].filter((tag, i, all) => all.indexOf(tag) === i),
  };
}

/** In how many texts each word is. */
export class WordCount {
  readonly #texts = new Map<string, number>();

  add({ messages }: Chat): void {
    const words = new Set(messages.flatMap(({ content }) => content.toLowerCase().match(/[a-z]+|\d+/g) ?? []));
    for (const word of words) this.#texts.set(word, (this.#texts.get(word) ?? 0) + 1);
  }

  /** Words that are in at least `low` and at most `high` texts, in no order that says anything. */
  between(low: number, high: number): string[] {
    return [...this.#texts].filter(([, texts]) => texts >= low && texts <= high).map(([word]) => word);
  }
}

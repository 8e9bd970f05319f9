/** What the benchmark of Datanets measures on: the same every time, with as many repetitions as it says. */
import { describe, expect, it } from 'vitest';
import { chats, longChats, WordCount } from '../../loadtest/bench/datanet-text.ts';
import { seededRandom } from '../../loadtest/bench/random.ts';

describe('generated rows', () => {
  const rows = [...chats(5_000, seededRandom(1))].map((row) => JSON.stringify(row));

  it('are the same for the same seed, and others for another', () => {
    expect([...chats(50, seededRandom(1))].map((row) => JSON.stringify(row))).toEqual(rows.slice(0, 50));
    expect(JSON.stringify([...chats(50, seededRandom(2))])).not.toBe(JSON.stringify([...chats(50, seededRandom(1))]));
  });

  it('repeat one row of a hundred word for word', () => {
    const repeated = rows.length - new Set(rows).size;
    expect(repeated).toBeGreaterThan(25);
    expect(repeated).toBeLessThan(100);
  });

  it('have rare words and frequent ones', () => {
    const words = new WordCount();
    for (const row of chats(2_000, seededRandom(3))) words.add(row);
    expect(words.between(1, 20).length).toBeGreaterThan(1_000);
    expect(words.between(600, 2_000)).toEqual(expect.arrayContaining(['the', 'was']));
  });

  it('long ones fill a file of the size that was asked for', () => {
    const lines = [...longChats(200_000, 2_200, seededRandom(4))];
    const bytes = lines.reduce((sum, line) => sum + line.length, 0);
    expect(bytes).toBeGreaterThanOrEqual(200_000);
    expect(bytes).toBeLessThan(203_000);
    for (const line of lines) expect(JSON.parse(line)).toHaveProperty('messages.1.content');
  });
});

import { existsSync, readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { chatRow, startDatanetRig } from './rig.ts';

test('what was withdrawn and erased is in no file of the database: not in free pages, not in the full-text index, not in the log', async () => {
  const rig = await startDatanetRig();
  try {
    const ann = await rig.person('Ann');
    const net = await rig.datanet(ann);
    const secret = 'xylophonequartz';
    const sent = [chatRow(1, `The password is ${secret} and ${secret.repeat(400)}.`)];
    for (let row = 2; row < 300; row += 1) sent.push(chatRow(row));
    await rig.contribute(ann, net, sent);
    await rig.approveAll(ann, net);
    await rig.publish(ann, net);
    const { client, file } = await (async () => {
      const { $client } = rig.database.db;
      const { rows } = await $client.execute('PRAGMA database_list');
      return { client: $client, file: String(rows[0]?.file) };
    })();
    // The index keeps words by what they begin with: a stretch in the middle is there in one piece.
    const found = () =>
      ['', '-wal', '-journal'].filter(
        (end) => existsSync(file + end) && readFileSync(file + end).includes(secret.slice(4)),
      );
    expect(found()).not.toEqual([]);
    const { rows } = await client.execute("SELECT 'row_' || min(seq) AS id FROM datanet_rows");
    const body = { rows: [rows[0]?.id], reason: 'private', erase: true };
    await rig.json(await ann.call('POST', `/api/datanets/${net.id}/withdrawals`, body), 200);
    expect(found()).not.toEqual([]);
    await rig.app.services.datanets.cleaner.clean();
    expect(found()).toEqual([]);
    expect(await client.execute('SELECT asked - done AS left FROM erasures').then((one) => one.rows[0]?.left)).toBe(0);
  } finally {
    await rig.close();
  }
});

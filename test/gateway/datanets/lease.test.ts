import { afterAll, beforeAll, expect, test } from 'vitest';
import { Leases } from '../../../gateway/datanets/contributions/lease.ts';
import { type DatanetRig, startDatanetRig } from './rig.ts';

let rig: DatanetRig;
beforeAll(async () => {
  rig = await startDatanetRig();
});
afterAll(() => rig.close());

const leases = (holder: string) => new Leases(rig.database.db.$client, holder);
const never = new AbortController().signal;

test('two gateways on one database never read into one Datanet at the same time, and both come to it', async () => {
  let reading = 0;
  const most: number[] = [];
  const work = async () => {
    reading += 1;
    most.push(reading);
    await new Promise((resolve) => setTimeout(resolve, 20));
    reading -= 1;
  };
  await Promise.all([leases('one').hold('dn_a', never, work), leases('two').hold('dn_a', never, work)]);
  expect(most).toEqual([1, 1]);
});

test('another Datanet is not held up; a lease that nobody renews ends; whoever waits can be stopped', async () => {
  const { $client } = rig.database.db;
  await $client.execute("INSERT INTO datanet_readings (datanet_id, holder, until) VALUES ('dn_dead', 'gone', 1)");
  expect(await leases('one').hold('dn_dead', never, () => leases('two').hold('dn_b', never, async () => 7))).toBe(7);
  await $client.execute(`INSERT INTO datanet_readings (datanet_id, holder, until) VALUES ('dn_c', 'alive', ${1e15})`);
  await expect(leases('one').hold('dn_c', AbortSignal.abort(), async () => 7)).rejects.toThrow(/not read any further/);
});

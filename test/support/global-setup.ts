import { fetchDefaultModel } from './model.ts';

export default async function setup(): Promise<void> {
  await fetchDefaultModel((line) => process.stderr.write(`${line}\n`));
}

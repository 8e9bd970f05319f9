/** The gateway's rig with a daemon that trains by script, and shorthands for files and jobs. */
import type OpenAI from 'openai';
import { toFile } from 'openai';
import { PATIENCE_MS } from '../../support/patience.ts';
import { type Rig, startRig } from '../rig.ts';
import { type ScriptedTraining, scriptTraining } from './scripted-training.ts';

export interface FactoryRig extends Rig {
  training: ScriptedTraining;
  openai: OpenAI;
  /** Uploads text under a name; @returns the file's id. */
  upload(name: string, text: string | Uint8Array, client?: OpenAI): Promise<string>;
  /** Waits until the job is over, or in the status. */
  until(id: string, status?: string): Promise<OpenAI.FineTuning.FineTuningJob>;
  /** Messages in the order they were told. */
  messages(id: string): Promise<string[]>;
}

export async function startFactoryRig(options: Parameters<typeof startRig>[0] = {}): Promise<FactoryRig> {
  const rig = await startRig(options);
  const training = scriptTraining(rig.daemon);
  const openai = rig.client();
  const made: FactoryRig = {
    ...rig,
    async close() {
      training.stop();
      await rig.close();
    },
    training,
    openai,
    async upload(name, text, client = openai) {
      const file = await toFile(typeof text === 'string' ? Buffer.from(text) : text, name);
      return (await client.files.create({ file, purpose: 'fine-tune' })).id;
    },
    async until(id, status) {
      const deadline = Date.now() + PATIENCE_MS;
      for (;;) {
        const job = await openai.fineTuning.jobs.retrieve(id);
        if (job.status === status || ['succeeded', 'failed', 'cancelled'].includes(job.status)) return job;
        if (Date.now() > deadline) throw new Error(`the job stays ${job.status}: ${rig.logLines.slice(-5).join('')}`);
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    },
    async messages(id) {
      const { data } = await openai.fineTuning.jobs.listEvents(id, { limit: 100 });
      return data.map(({ message }) => message).reverse();
    },
  };
  return made;
}

export function chatLines(count: number, word = 'answer'): string {
  return Array.from({ length: count }, (_, index) =>
    JSON.stringify({
      messages: [
        { role: 'system', content: 'You are terse.' },
        { role: 'user', content: `Question ${index}` },
        { role: 'assistant', content: `${word} ${index}` },
      ],
    }),
  ).join('\n');
}

export function preferenceLines(count: number): string {
  return Array.from({ length: count }, (_, index) =>
    JSON.stringify({
      input: { messages: [{ role: 'user', content: `Question ${index}` }] },
      preferred_output: [{ role: 'assistant', content: `good ${index}` }],
      non_preferred_output: [{ role: 'assistant', content: `bad ${index}` }],
    }),
  ).join('\n');
}

/** `modelfactory jobs …`: fine-tuning jobs, and a live line of one. */
import type { Command } from 'commander';
import { CliError, type GatewayClient } from './client.ts';
import { type Context, subcommand } from './command.ts';
import { duration, liveLine } from './live.ts';
import { minute, type Output, table } from './output.ts';

export interface Job {
  id: string;
  status: string;
  model: string;
  created_at: number;
  fine_tuned_model: string | null;
  trained_tokens: number | null;
  error: { code: string; message: string } | null;
  user_provided_suffix: string | null;
  modelfactory: { progress: Record<string, number> | null; estimate: Record<string, unknown> | null };
}

interface JobEvent {
  id: string;
  type: 'message' | 'metrics';
  level: string;
  message: string;
  data: Record<string, number>;
}

const path = (id: string) => `/v1/fine_tuning/jobs/${encodeURIComponent(id)}`;
const OVER = new Set(['succeeded', 'failed', 'cancelled']);
const RECONNECT_MS = 2_000;

export async function listJobs(client: GatewayClient, options: { json?: boolean }, { out }: Output): Promise<void> {
  const { data } = (await client.call('GET', '/v1/fine_tuning/jobs?limit=100')) as { data: Job[] };
  if (options.json) return out(JSON.stringify(data, null, 2));
  const rows = data.map((job) => {
    const { step, total_steps } = job.modelfactory.progress ?? {};
    return [
      job.id,
      job.status,
      step === undefined ? '-' : `${step}/${total_steps}`,
      job.fine_tuned_model ?? job.user_provided_suffix ?? '-',
      minute(job.created_at),
    ];
  });
  out(
    table(
      ['JOB', 'STATUS', 'STEP', 'MODEL', 'CREATED'],
      rows,
      'There are no jobs. Start one with: npx modelfactory train FILE',
    ),
  );
}

export async function showJob(client: GatewayClient, id: string, { out }: Output): Promise<void> {
  out(JSON.stringify(await client.call('GET', path(id)), null, 2));
}

export async function actOnJob(
  client: GatewayClient,
  id: string,
  action: 'cancel' | 'pause' | 'resume',
  options: { json?: boolean },
  { out }: Output,
): Promise<void> {
  const job = (await client.call('POST', `${path(id)}/${action}`)) as Job;
  out(options.json ? JSON.stringify(job, null, 2) : `${job.id} is ${job.status}.`);
}

/** Loss, speed, time left and memory of a step in one line. */
export function progressLine(data: Record<string, number>): string {
  const { step, total_steps, train_loss, valid_loss, tokens_per_second, remaining_seconds, memory_bytes } = data;
  const parts = [`step ${step}/${total_steps}`, `loss ${train_loss?.toFixed(3)}`];
  if (valid_loss !== undefined) parts.push(`valid ${valid_loss.toFixed(3)}`);
  if (tokens_per_second !== undefined) parts.push(`${Math.round(tokens_per_second)} tokens/s`);
  if (remaining_seconds !== undefined) parts.push(`${duration(remaining_seconds)} left`);
  if (memory_bytes !== undefined) parts.push(`${(memory_bytes / 1e9).toFixed(2)} GB`);
  return parts.join(' · ');
}

/** Follows a job to its end. Ctrl-C ends the watching, not the job. @returns 0 if it succeeded. */
export async function watchJob(
  client: GatewayClient,
  id: string,
  { out, note }: Output,
  options: { json?: boolean } = {},
): Promise<number> {
  // Every step is worth a line where they are not written over.
  const line = liveLine(process.stderr, note, { everyMs: 0 });
  const leave = () => {
    line.finish();
    note(
      `The job goes on. Watch it again with: npx modelfactory jobs watch ${id}\nStop it with: npx modelfactory jobs cancel ${id}`,
    );
    process.exit(130);
  };
  process.once('SIGINT', leave);
  try {
    let after = '';
    for (;;) {
      try {
        for await (const data of client.events('GET', `${path(id)}/events?stream=true${after && `&after=${after}`}`)) {
          const event = data as unknown as JobEvent;
          after = event.id;
          if (event.type === 'metrics') line.show(progressLine(event.data));
          else {
            line.finish();
            note(event.level === 'info' ? event.message : `${event.level}: ${event.message}`);
          }
        }
      } catch (error) {
        // Before the first event: there is no such job, or no such server.
        if (after === '' || !(error instanceof CliError)) throw error;
        line.finish();
        note(`${error.message} Trying again; the job does not need this window.`);
        await new Promise((resolve) => setTimeout(resolve, RECONNECT_MS));
        continue;
      }
      const job = (await client.call('GET', path(id))) as Job;
      if (!OVER.has(job.status)) continue;
      line.finish();
      if (options.json) out(JSON.stringify(job, null, 2));
      if (job.status === 'succeeded') {
        if (!options.json) out(job.fine_tuned_model ?? '');
        note(`Use it with "model": "${job.fine_tuned_model}".`);
        return 0;
      }
      note(job.error === null ? `The job is ${job.status}.` : `The job failed (${job.error.code}).`);
      return 1;
    }
  } finally {
    process.off('SIGINT', leave);
  }
}

export function jobCommands(program: Command, { client, output, setCode }: Context): void {
  const jobs = program.command('jobs').description('fine-tuning jobs');
  subcommand(jobs, 'list', 'newest first').action((options) => listJobs(client(), options, output));
  subcommand(jobs, 'show <id>', 'all of one job, as JSON').action((id) => showJob(client(), id, output));
  subcommand(jobs, 'watch <id>', 'follow a job to its end').action(async (id: string, options) =>
    setCode(await watchJob(client(), id, output, options)),
  );
  for (const action of ['cancel', 'pause', 'resume'] as const)
    subcommand(jobs, `${action} <id>`, `${action} a job`).action((id, options) =>
      actOnJob(client(), id, action, options, output),
    );
}

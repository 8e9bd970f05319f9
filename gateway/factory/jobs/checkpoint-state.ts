/** Whether what a job made can be used now: its rows stay for good, the adapters do not. */
import type { DaemonPool } from '../../daemons/pool.ts';

export const CHECKPOINT_STATES = ['available', 'removed', 'replaced', 'unknown'] as const;
export type CheckpointState = (typeof CHECKPOINT_STATES)[number];

/** Asks every daemon once for all of them, in the order given. */
export async function checkpointStates(
  pool: Pick<DaemonPool, 'served'>,
  checkpoints: readonly { adapter: string; digest: string }[],
): Promise<CheckpointState[]> {
  if (checkpoints.length === 0) return [];
  const { digests, complete } = await pool.served();
  return checkpoints.map(({ adapter, digest }) => {
    const found = digests.get(adapter);
    if (found?.has(digest) === true) return 'available';
    if (!complete) return 'unknown';
    return found === undefined ? 'removed' : 'replaced';
  });
}

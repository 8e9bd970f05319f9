/**
 * What the supervisor knows, in `supervisor.json` of the data folder, so that the gateway's /health and `modelfactory
 * doctor` can tell "the daemon is being restarted" from "the daemon does not answer". The file's path is in
 * MODELFACTORY_SUPERVISOR_STATE of both processes.
 */
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';

export type ProcessState = 'starting' | 'ready' | 'waiting_to_restart' | 'stopping' | 'stopped' | 'failed';

export interface ProcessReport {
  state: ProcessState;
  pid: number | null;
  /** Starts after the first. */
  restarts: number;
  /** ISO 8601; when `state` began. */
  since: string;
  /** How it last ended, in words, e.g. "killed by SIGKILL"; null if it never has. */
  lastExit: string | null;
  /** ISO 8601; set while waiting_to_restart. */
  nextStartAt: string | null;
}

export interface SupervisorState {
  pid: number;
  startedAt: string;
  url: string;
  processes: Record<string, ProcessReport>;
}

export function writeState(path: string, state: SupervisorState): void {
  const part = `${path}.${state.pid}.part`;
  writeFileSync(part, `${JSON.stringify(state, null, 2)}\n`, { mode: 0o600 });
  renameSync(part, path);
}

/** null if there is none, or it cannot be read. */
export function readState(path: string): SupervisorState | null {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as SupervisorState;
  } catch {
    return null;
  }
}

export function removeState(path: string): void {
  rmSync(path, { force: true });
}

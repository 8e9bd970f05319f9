/**
 * Preloaded into the supervised processes: if the supervisor is gone, even by kill -9, they end too, in good order first and
 * by force if that takes too long. The channel to the supervisor closes with it; nothing is polled.
 */
import { isMainThread } from 'node:worker_threads';

const GRACE_MS = 15_000;

if (isMainThread && process.channel) {
  process.on('disconnect', () => {
    setTimeout(() => process.kill(process.pid, 'SIGKILL'), GRACE_MS).unref();
    process.kill(process.pid, 'SIGTERM');
  });
  // Waiting for the supervisor's end must not keep a process alive that has nothing else to do.
  process.channel.unref();
}

/** Node 20 does not hand `--import tsx` on to worker threads; this registers it and loads the worker. */
import { register } from 'tsx/esm/api';

register();
await import('./stepping-worker.ts');

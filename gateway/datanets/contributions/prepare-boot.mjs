// `--import tsx` in a Worker's execArgv does not reach worker threads on Node 20; registering inside the thread does.
import { register } from 'tsx/esm/api';

register();
await import('./prepare-worker.ts');

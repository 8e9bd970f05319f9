/** Node 20 gives a worker thread no loader of its own: this one registers tsx, then opens the thread's code. */
import { register } from 'tsx/esm/api';

register();
await import('./share-worker.ts');

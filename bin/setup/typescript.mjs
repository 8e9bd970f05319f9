/** Lets this process import TypeScript files. Call after bootstrap(): tsx comes from node_modules. */
import { pathToFileURL } from 'node:url';

export async function importTypeScript(path) {
  const { register } = await import('tsx/esm/api');
  register();
  return await import(pathToFileURL(path).href);
}

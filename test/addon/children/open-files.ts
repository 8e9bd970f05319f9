/** Opens each file as the daemon does: `readGgufHeader` first, then the addon. Prints how each ended. */
import { AddonError, loadModel, openVocabulary } from '../../../addon/index.ts';
import { readGgufHeader } from '../../../daemon/models/gguf.ts';

function outcome(f: () => void): string {
  try {
    f();
    return 'opened';
  } catch (error) {
    if (error instanceof AddonError) return error.code;
    return 'refused';
  }
}

const results = process.argv.slice(2).map((path) => ({
  model: outcome(() => {
    readGgufHeader(path);
    loadModel({ path, device: 'cpu' }).close();
  }),
  vocabulary: outcome(() => {
    readGgufHeader(path);
    openVocabulary(path).close();
  }),
}));
console.log(JSON.stringify(results));

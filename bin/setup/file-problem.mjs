/** What a file system refused, in words. Plain built-ins. */
const ELSEWHERE = 'look at its owner and mode, or choose other folders with MODELFACTORY_DATA and MODELFACTORY_CACHE';

const FILE_PROBLEMS = {
  EACCES: `may not be read or written by you; ${ELSEWHERE}`,
  EPERM: `may not be read or written by you; ${ELSEWHERE}`,
  EROFS: `is on a disk that can only be read; ${ELSEWHERE}`,
  ENOENT: 'is not there',
  ENOTDIR: 'lies below something that is no folder',
  EISDIR: 'is a folder',
  EEXIST: 'is there already, as something else',
  ENOSPC: 'does not fit: the disk is full',
  EDQUOT: 'does not fit: your quota of the disk is used up',
  EMFILE: 'cannot be opened: too many files are open (see ulimit -n)',
};

/** One sentence about what a file system refused, or null for every other error. */
export function fileProblem(error) {
  if (typeof error?.path !== 'string' || typeof error.syscall !== 'string' || error.syscall.startsWith('spawn'))
    return null;
  const what = FILE_PROBLEMS[error.code];
  return what ? `${error.dest ?? error.path} ${what} (${error.code}).` : null;
}

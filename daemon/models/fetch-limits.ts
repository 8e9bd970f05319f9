/** Named limits of fetching models. */

/** From the first packet to an open connection. A source that does not answer costs this, not minutes. */
export const CONNECT_TIMEOUT_MS = 4_000;
/** From the request to the head of the answer. */
export const HEADERS_TIMEOUT_MS = 8_000;
/** Longest silence within a body before it counts as interrupted. */
export const STALL_TIMEOUT_MS = 20_000;
/** Tries per source; each goes on where the last one was cut. */
export const ATTEMPTS_MAX = 4;
export const REDIRECTS_MAX = 5;
/** Head room on the disk besides the file itself. */
export const DISK_SPARE_BYTES = 64 * 1024 * 1024;
/** Largest file taken from a hub repository, whose size nobody has pinned. */
export const MODEL_BYTES_MAX = 512 * 1024 ** 3;
/** An index page of a package. */
export const INDEX_BYTES_MAX = 16 * 1024 * 1024;
/** Longest wait for another process that is fetching the same file. */
export const LOCK_WAIT_MS = 30 * 60_000;
export const LOCK_POLL_MS = 250;

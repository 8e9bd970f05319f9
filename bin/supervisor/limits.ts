/** Named limits of the supervisor. */

/** First wait before a crashed process is started again; doubled each time. */
export const BACKOFF_FIRST_MS = 1_000;
export const BACKOFF_MAX_MS = 30_000;
/** Ready for this long, a process counts as sound and its next crash waits BACKOFF_FIRST_MS again. */
export const STABLE_AFTER_MS = 60_000;
/** A process that has never been ready is not tried more often than this: the cause is in the set-up, not in the moment. */
export const FIRST_STARTS_MAX = 3;
/** How long a process may take to end what is under way before it is killed. */
export const STOP_TIMEOUT_MS = 20_000;
export const HEALTH_INTERVAL_MS = 150;
export const HEALTH_TIMEOUT_MS = 2_000;
/** A log line that is longer is passed on as it is. */
export const LOG_LINE_BYTES_MAX = 64 * 1024;
/** EX_CONFIG of sysexits.h: "the configuration is wrong"; starting again would not help. */
export const EXIT_CONFIG = 78;

/**
 * How long tests wait, in milliseconds, for what is sure to come: far longer than it takes on any machine, shorter than the time-out of
 * a test, so that what never comes is told in its own words. No promise about time is meant by it.
 */
export const PATIENCE_MS = 90_000;

/** SQL of the database's time in Unix milliseconds: what machines that share a database go by, since their own clocks need not agree. */
export const NOW_MS = "CAST(unixepoch('subsec') * 1000 AS INTEGER)";

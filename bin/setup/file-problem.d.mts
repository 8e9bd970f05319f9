/** One sentence about what a file system refused, or null for every other error. */
export function fileProblem(error: unknown): string | null;

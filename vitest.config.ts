import { defineConfig } from 'vitest/config';
import { PATIENCE_MS } from './test/support/patience.ts';

/** Tests that compute with the native engine: one file at a time, since two ggml thread pools on the same cores starve each other. */
const NATIVE = [
  'test/addon/**/*.test.ts',
  'test/e2e/**/*.test.ts',
  'test/browser/**/*.test.ts',
  'test/**/*.native.test.ts',
];

export default defineConfig({
  test: {
    globalSetup: ['test/support/global-setup.ts'],
    // Generous: the machines of CI are slow and shared; what hangs is still found. No test has a shorter time-out of its own.
    testTimeout: 120_000,
    hookTimeout: 300_000,
    teardownTimeout: 20_000,
    expect: { poll: { timeout: PATIENCE_MS, interval: 20 } },
    restoreMocks: true,
    projects: [
      {
        extends: true,
        test: {
          name: 'parallel',
          include: ['test/**/*.test.ts'],
          exclude: NATIVE,
          maxWorkers: 2,
          sequence: { groupOrder: 0 },
        },
      },
      {
        extends: true,
        test: { name: 'native', include: NATIVE, fileParallelism: false, sequence: { groupOrder: 1 } },
      },
    ],
  },
});

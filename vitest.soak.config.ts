import { defineConfig } from "vitest/config";

/** Torture tests, trials of runbooks and fleets of several hosts as in `npm run test:all`, at full length: each reads `SOAK` for its size. */
export default defineConfig({
  resolve: { alias: { copilotfleet: new URL("./src/index.ts", import.meta.url).pathname } },
  test: {
    include: [
      "test/faults/**/*.test.ts",
      "test/attacks/{api-fuzz,fuzz,survival}.test.ts",
      "test/commands/runbooks.test.ts",
      "test/door/{client,tls}.test.ts",
      "test/hosts/{commands,door,door-client}.test.ts",
    ],
    env: { SOAK: "1" },
    testTimeout: 30 * 60_000,
    hookTimeout: 180_000,
    expect: { poll: { timeout: 20_000 } },
    // The tests start real servers and processes, which mostly wait. Two processors can run three files at a time.
    maxWorkers: 3,
  },
});

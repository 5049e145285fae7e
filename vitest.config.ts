import { defineConfig } from "vitest/config";

export default defineConfig({
  resolve: { alias: { copilotfleet: new URL("./src/index.ts", import.meta.url).pathname } },
  test: {
    include: ["test/**/*.test.ts"],
    // These end what hangs. They are no measure: a loaded machine takes several times as long as an idle one.
    testTimeout: 180_000,
    hookTimeout: 180_000,
    expect: { poll: { timeout: 20_000 } },
    // Real servers and real processes, which wait more than they work: as many files at a time as two processors carry.
    maxWorkers: 3,
    // A test that passes only at its second try is named at the end of the run: it is to be mended next.
    retry: 1,
    reporters: ["default", "./test/fixtures/flaky-reporter.ts"],
  },
});

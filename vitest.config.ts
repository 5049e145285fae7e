import { defineConfig } from "vitest/config";

export default defineConfig({
  resolve: { alias: { copilotfleet: new URL("./src/index.ts", import.meta.url).pathname } },
  test: {
    include: ["test/**/*.test.ts"],
    // These limits end a test that hangs. They measure nothing, because a loaded machine takes several times as long as an idle one.
    testTimeout: 180_000,
    hookTimeout: 180_000,
    expect: { poll: { timeout: 20_000 } },
    // The tests start real servers and processes, which mostly wait. Two processors can run three files at a time.
    maxWorkers: 3,
    // The reporter lists each test that passes only at its second try. Fix such a test next.
    retry: 1,
    reporters: ["default", "./test/fixtures/flaky-reporter.ts"],
  },
});

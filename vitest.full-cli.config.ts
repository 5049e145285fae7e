import { defineConfig } from "vitest/config";

/** A part of the end-to-end tests on the full CLI. `scripts/with-full-cli.mjs` sets COPILOT_CLI_PATH. */
export default defineConfig({
  resolve: { alias: { copilotfleet: new URL("./src/index.ts", import.meta.url).pathname } },
  test: {
    include: [
      "test/commands/eviction.test.ts",
      "test/e2e/{conversation,stop}.test.ts",
      "test/door/client.test.ts",
      "test/sessions/lasting-approvals.test.ts",
    ],
    env: { TEST_RUNTIME: process.env.COPILOT_CLI_PATH ?? "" },
    testTimeout: 180_000,
    hookTimeout: 180_000,
    expect: { poll: { timeout: 20_000 } },
    maxWorkers: 3,
    retry: 1,
    reporters: ["default", "./test/fixtures/run-reporter.ts"],
  },
});

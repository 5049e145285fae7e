import { defineConfig } from "vitest/config";

export default defineConfig({
  resolve: { alias: { copilotfleet: new URL("./src/index.ts", import.meta.url).pathname } },
  test: {
    include: ["test/**/*.test.ts"],
    testTimeout: 120_000,
    hookTimeout: 120_000,
    // Real servers and real processes: two files at a time is what a small machine carries without skewed deadlines.
    maxWorkers: 2,
  },
});

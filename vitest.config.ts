import { defineConfig } from "vitest/config";

const folders = (names: string) => names.split(" ").map((name) => `test/${name}/**/*.test.ts`);
/** Each promise once, in at most 5 minutes on 2 processors, with no other program than Node.js: `npm test`. */
const PROMISES = [
  "test/*.test.ts",
  ...folders(
    "accounts base cli config deploy door e2e fleet http identity operations providers runtime serve servers sessions",
  ),
];
/** `npm run test:all` adds these: the commands in detail, attacks, browsers, documents, sandboxes, stores and terminals. */
const MORE = folders("attacks commands console docs sandbox store terminal");
const FAULTS = folders("faults");
/** Fleets of several hosts. */
const HOSTS = folders("hosts");

/** Several files run in one process, one after another. They have to restore what they change in it. */
const project = (name: string, include: readonly string[]) => ({
  extends: true as const,
  test: { name, include: [...include], isolate: false },
});

export default defineConfig({
  resolve: { alias: { copilotfleet: new URL("./src/index.ts", import.meta.url).pathname } },
  test: {
    // vitest begins with the first project in alphabetical order. So the slow files begin first.
    projects: [
      project("faults", FAULTS),
      project("hosts", HOSTS),
      project("more", MORE),
      project("promises", PROMISES),
    ],
    // These limits end a test that hangs. They measure nothing, because a loaded machine takes several times as long as an idle one.
    testTimeout: 180_000,
    hookTimeout: 180_000,
    expect: { poll: { timeout: 20_000 } },
    // The tests start real servers and processes, which mostly wait. Two processors can run six files at a time.
    maxWorkers: 6,
    // The reporter lists each test that passes only at its second try. Fix such a test next.
    retry: 1,
    reporters: ["default", "./test/fixtures/run-reporter.ts"],
  },
});

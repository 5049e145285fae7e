import { defineConfig } from "vitest/config";

/** One module at a time, without a server of a fleet. */
const UNIT = [
  "test/{architecture,errors,library-types,schemas}.test.ts",
  "test/{cli,config,fleet}/**/*.test.ts",
  "test/identity/{policy,token-uses}.test.ts",
  "test/gateway/{lost,methods,protocols,reach,relay,turn,turn-server,wire}.test.ts",
  "test/identity/tls-*.test.ts",
  "test/models/echo.test.ts",
  "test/pool/{claim,ports,use-markers}.test.ts",
  "test/runtime/{clock,connect,deadline,environment,frames,launches,process-table,server-folder,shared-storage,versions}.test.ts",
  "test/serve/{backoff,health-endpoint,log-rotation,log-tail,metrics,monitoring,transitions,upkeep}.test.ts",
  "test/sessions/{find,gc,gc-age,gc-run,gc-servers,last-uses,leases,load,release,server}.test.ts",
  "test/{events,peers,sandbox,store,system}/**/*.test.ts",
];
/** Fleets of several hosts. */
const HOSTS = ["test/hosts/**/*.test.ts", "test/{e2e,faults,gateway}/hosts*.test.ts", "test/faults/pods.test.ts"];
const FAULTS = ["test/faults/**/*.test.ts"];

/** Several files run in one process, one after another. They have to restore what they change in it. */
const project = (name: string, include: readonly string[], exclude: readonly string[] = []) => ({
  extends: true as const,
  test: { name, include: [...include], exclude: [...exclude], isolate: false },
});

export default defineConfig({
  resolve: { alias: { copilotfleet: new URL("./src/index.ts", import.meta.url).pathname } },
  test: {
    // vitest begins with the first project in alphabetical order. So the slow files begin first.
    projects: [
      project("faults", FAULTS, HOSTS),
      project("hosts", HOSTS),
      project("real", ["test/**/*.test.ts"], [...UNIT, ...HOSTS, ...FAULTS]),
      project("unit", UNIT),
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

import { spawnSync } from "node:child_process";
import { chmodSync, copyFileSync, mkdirSync, readFileSync, readlinkSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, it } from "vitest";
import { findRuntime } from "../../src/runtime/launch/versions.js";
import { eventually } from "../fixtures/eventually.js";
import { errorOf, expectConsistent, fake, faultFleet, openFolder } from "../fixtures/fleets/fault-fleet.js";
import { isRunning, killed, processesAround, processesWith } from "../fixtures/processes.js";
import { Stopwatch } from "../fixtures/stopwatch.js";

it("spawn shows the last output of a runtime that ends at once, and leaves no process", async () => {
  const fleet = await faultFleet({ COPILOT_CLI_PATH: fake("exits.mjs") });
  const { code, stdout, stderr } = await fleet.run(["spawn", "--user", "alice"]);
  expect({ code, stdout }).toEqual({ code: 7, stdout: "" });
  expect(stderr).toMatch(/ended at once \(exit code 1\).*the frobnicator \| \[31m is missing/);
  expect(await fleet.record("alice")).toMatchObject({
    state: "failed",
    failure: expect.stringContaining("the frobnicator"),
    port: null,
    process: null,
    claim: null,
    launchId: null,
  });
  expect(await fleet.ps()).toMatchObject([{ state: "failed", pid: null, port: null, url: null }]);
  // The next spawn gets the same port, and the real runtime works on the same home.
  const { server } = await fleet.json<{ server: { port: number } }>(["spawn", "--user", "alice"], {
    env: { COPILOT_CLI_PATH: "" },
  });
  expect(server.port).toBe(fleet.ports.from);
});

it("spawn leaves no child of a runtime that ended before it listened", async () => {
  const fleet = await faultFleet({ COPILOT_CLI_PATH: fake("forks-exits.mjs") });
  const { code, stderr } = await fleet.run(["spawn", "--user", "alice"]);
  expect({ code, stderr }).toMatchObject({ code: 7, stderr: expect.stringContaining("left a child behind") });
  expect(fleet.processes()).toEqual([]);
});

it.each([
  ["silent.mjs", "never listens"],
  ["slow.mjs", "listens but does not answer"],
])("spawn gives up on a runtime (%s) that %s when --wait is over", async (name) => {
  const fleet = await faultFleet({ COPILOT_CLI_PATH: fake(name) });
  using took = new Stopwatch();
  const result = await fleet.run(["spawn", "--user", "alice", "--wait", "500ms", "--json"]);
  expect(result.code).toBe(6);
  expect(errorOf(result)).toMatchObject({
    code: "FLEET_SERVER_START_TIMEOUT",
    suggestions: [expect.stringContaining("--wait")],
  });
  // The default of --wait is 30 s.
  expect(took.ms).toBeLessThan(15_000);
  expect(fleet.processes()).toEqual([]);
  expect(await fleet.record("alice")).toMatchObject({ state: "failed", port: null, claim: null });
});

it("spawn waits up to --wait for a runtime whose start takes longer than a probe may take", async () => {
  const fleet = await faultFleet({ COPILOT_CLI_PATH: fake("slow.mjs") });
  const { server } = await fleet.json<{ server: { state: string } }>(["spawn", "--user", "alice", "--wait", "20s"]);
  expect(server.state).toBe("ready");
});

it("stop kills a server that ignores SIGTERM once the grace period is over", async () => {
  const fleet = await faultFleet({ COPILOT_CLI_PATH: fake("deaf.mjs") });
  const { log } = await fleet.spawn("alice");
  const begun = performance.now();
  expect(await fleet.json(["stop", "--user", "alice"])).toMatchObject({ stopped: [{ outcome: "killed", cut: [] }] });
  expect(performance.now() - begun).toBeGreaterThan(4_500);
  const own = readFileSync(log, "utf8").replaceAll(/^(copilotfleet: TCP_NODELAY is set|.*\[copilotfleet\].*)\n/gm, "");
  expect(own, "the output of the server").toBe("ignored SIGTERM\n");
  expect(fleet.processes()).toEqual([]);
  expect(await fleet.record("alice")).toMatchObject({ state: "stopped", port: null });
});

it("stop ends all processes that a server started", async () => {
  const fleet = await faultFleet({ COPILOT_CLI_PATH: fake("forks.mjs") });
  const { pid } = await fleet.spawn("alice");
  await eventually("children", () => fleet.processes().length > 20);
  const group = processesAround(pid ?? 0, "group");
  expect(group.length).toBeGreaterThanOrEqual(3);
  await fleet.json(["stop", "--user", "alice"]);
  expect(fleet.processes()).toEqual([]);
  expect(group.filter(isRunning)).toEqual([]);
});

it("ps ends the processes that a killed server left behind, except a process that cannot be identified as the server's", async () => {
  // In bwrap, the kernel ends all processes of the server's PID namespace, so ps would find none of them.
  const fleet = await faultFleet({ COPILOT_CLI_PATH: fake("forks.mjs"), COPILOTFLEET_SANDBOX_MODE: "none" });
  const { pid } = await fleet.spawn("alice");
  await eventually("children", () => fleet.processes().length > 20);
  const group = processesAround(pid ?? 0, "group");
  await killed(pid);
  expect(await fleet.ps()).toMatchObject([{ state: "failed", port: null }]);
  expect(fleet.processes()).toEqual([]);
  // This child lacks the server's environment, and without a sandbox, it has no mark. Its session leader is dead.
  const spared = group.filter(isRunning);
  for (const child of spared) process.kill(child, "SIGKILL");
  expect(spared).toHaveLength(1);
});

it("when a stop is killed, spawn does not return the server that is already ending", async () => {
  const fleet = await faultFleet({ COPILOT_CLI_PATH: fake("lingers.mjs") });
  const { pid, log } = await fleet.spawn("alice");
  const { child, done } = fleet.start(["stop", "--user", "alice"]);
  await eventually("SIGTERM", () => readFileSync(log, "utf8").includes("ending"));
  const spawning = fleet.json<{ server: { pid: number } }>(["spawn", "--user", "alice"]);
  child.kill("SIGKILL");
  await done;
  const { server } = await spawning;
  expect(server.pid).not.toBe(pid);
  expect(fleet.servers()).toEqual([server.pid]);
  expect(await fleet.ps()).toMatchObject([{ state: "ready", pid: server.pid }]);
});

it("a server gets only the allowed variables of the command's environment", async () => {
  const fleet = await faultFleet();
  const canary = "FAULT_CANARY=42";
  await fleet.json(["spawn", "--user", "alice"], { env: { FAULT_CANARY: "42", GITHUB_TOKEN: "canary" } });
  expect(fleet.servers()).toHaveLength(1);
  expect(processesWith(canary)).toEqual([]);
  expect(processesWith("GITHUB_TOKEN=canary")).toEqual([]);
});

it.each(["auto", "none"])(
  "a server in sandbox mode %j does not inherit the locked file of the script that started it",
  async (mode) => {
    const fleet = await faultFleet({ COPILOTFLEET_SANDBOX_MODE: mode });
    const lock = join(fleet.folder, "lock");
    const script = 'exec 200>"$0"; flock --nonblock 200; "$@"';
    await fleet.ok(["spawn", "--user", "alice"], { under: ["bash", "-c", script, lock] });
    expect(spawnSync("flock", ["--nonblock", lock, "true"]).status).toBe(0);
  },
);

const PLATFORM = `@github/copilot-${process.platform}-${process.arch}`;
const TRAP = "#!/usr/bin/env node\nthrow new Error('the wrapper was started');\n";

/**
 * Creates the files that npm installs: the wrapper's package, the command (a link to the wrapper), and, if `native`,
 * the native package.
 */
async function installed(native: boolean): Promise<{ wrapper: string; command: string; program: string }> {
  const modules = join(await openFolder(), "node_modules");
  const wrapper = join(modules, "@github", "copilot", "npm-loader.js");
  const program = join(modules, ...PLATFORM.split("/"), "copilot");
  const command = join(modules, ".bin", "copilot");
  for (const folder of [wrapper, command, ...(native ? [program] : [])].map(dirname))
    mkdirSync(folder, { recursive: true });
  writeFileSync(wrapper, TRAP, { mode: 0o755 });
  writeFileSync(join(dirname(wrapper), "package.json"), JSON.stringify({ name: "@github/copilot", version: "1.0.0" }));
  symlinkSync("../@github/copilot/npm-loader.js", command);
  if (native) {
    writeFileSync(join(dirname(program), "package.json"), JSON.stringify({ name: PLATFORM, version: "1.0.0" }));
    // Use a copy of the bundled runtime as the native program, because the test checks only which path is started. Link
    // runtime.node, because the runtime needs this file in its own folder.
    const bundled = findRuntime(null, {}).path;
    copyFileSync(bundled, program);
    symlinkSync(join(dirname(bundled), "runtime.node"), join(dirname(program), "runtime.node"));
  }
  return { wrapper, command, program };
}

it.each(["wrapper", "command"] as const)(
  "spawn starts the native program when COPILOT_CLI_PATH is the npm %s",
  async (which) => {
    const { program, ...paths } = await installed(true);
    const fleet = await faultFleet({ COPILOT_CLI_PATH: paths[which] });
    const { pid } = await fleet.spawn("alice");
    expect(readlinkSync(`/proc/${pid}/exe`)).toBe(program);
    expect(await fleet.record("alice")).toMatchObject({ runtimePath: program });
    await expectConsistent(fleet);
    expect(await fleet.json(["stop", "--user", "alice"])).toMatchObject({ stopped: [{ outcome: "drained" }] });
    expect(fleet.processes()).toEqual([]);
  },
);

it("spawn refuses an npm wrapper without its native program, and records nothing", async () => {
  const { wrapper } = await installed(false);
  const fleet = await faultFleet({ COPILOT_CLI_PATH: wrapper });
  const result = await fleet.run(["spawn", "--user", "alice", "--json"]);
  expect(result.code).toBe(3);
  expect(errorOf(result)).toMatchObject({
    code: "FLEET_RUNTIME_UNUSABLE",
    message: expect.stringContaining("npm wrapper"),
  });
  expect((await fleet.registry()).servers).toEqual({});
});

it("spawn refuses a native program that is not executable, and suggests the chmod command", async () => {
  const { wrapper, program } = await installed(true);
  chmodSync(program, 0o644);
  const fleet = await faultFleet({ COPILOT_CLI_PATH: wrapper });
  const result = await fleet.run(["spawn", "--user", "alice", "--json"]);
  expect(result.code).toBe(3);
  expect(errorOf(result)).toMatchObject({ code: "FLEET_RUNTIME_UNUSABLE", suggestions: [`chmod +x ${program}`] });
  expect((await fleet.registry()).servers).toEqual({});
});

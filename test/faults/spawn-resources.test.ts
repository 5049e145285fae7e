import { execFileSync, spawnSync } from "node:child_process";
import { appendFileSync, mkdirSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, it, onTestFinished } from "vitest";
import { serverIdOf } from "../../src/base/ids.js";
import { logPath, serverFolder } from "../../src/runtime/files/server-folder.js";
import type { ServerView } from "../../src/servers/server.js";
import type { Ran } from "../fixtures/commands/command.js";
import {
  errorOf,
  expectConsistent,
  type FaultFleet,
  faultFleet,
  openFolder,
  rounds,
} from "../fixtures/fleets/fault-fleet.js";
import { userFleet } from "../fixtures/fleets/user-fleet.js";
import { killed } from "../fixtures/processes.js";

/** The reason why no file system can be mounted here, or undefined if one can. */
const noMounts =
  process.getuid?.() === 0 && spawnSync("unshare", ["-m", "mount", "-t", "tmpfs", "none", "/mnt"]).status === 0
    ? undefined
    : "needs root and the right to mount";

const holdFiles = fileURLToPath(new URL("../fixtures/programs/hold-files.cjs", import.meta.url));

function mount(options: string, ...argv: string[]): void {
  const at = argv.at(-1) ?? "";
  execFileSync("mount", [...options.split(" "), ...argv]);
  onTestFinished(() => void execFileSync("umount", ["-l", at]));
}

/** Writes to a new file until the file system is full. Returns the path of the file. */
function fill(folder: string): string {
  const path = join(folder, "ballast");
  for (const bytes of [4_096, 1]) {
    try {
      for (;;) appendFileSync(path, Buffer.alloc(bytes));
    } catch {
      // there is no room for a block of this size
    }
  }
  return path;
}

function refused(result: Ran): { code: string; message: string } {
  expect(result.code, result.stdout + result.stderr).toBe(7);
  const error = errorOf(result);
  expect(error.code).toBe("FLEET_STATE_UNWRITABLE");
  return error;
}

async function expectUntouched(fleet: FaultFleet): Promise<void> {
  expect(fleet.processes()).toEqual([]);
  expect(Object.values((await fleet.registry()).servers)).toEqual([]);
}

it("spawn starts no process when the state folder's disk is full", async (ctx) => {
  if (noMounts !== undefined) return ctx.skip(noMounts);
  const folder = await openFolder();
  mount("-t tmpfs -o size=64k", "none", folder);
  const fleet = await faultFleet({}, { at: folder });
  mkdirSync(fleet.root, { mode: 0o700 });
  const ballast = fill(folder);
  expect(refused(await fleet.run(["spawn", "--user", "alice", "--json"])).message).toMatch(/no space left on device/);
  await expectUntouched(fleet);
  rmSync(ballast);
});

it("spawn starts no process when the state is read-only, but ps still reads the state", async (ctx) => {
  if (noMounts !== undefined) return ctx.skip(noMounts);
  const fleet = await faultFleet();
  const { pid } = await fleet.spawn("alice");
  mount("--bind", fleet.root, fleet.root);
  execFileSync("mount", ["-o", "remount,bind,ro", fleet.root]);
  // A process that has opened the database on a read-only disk cannot write to it later.
  const own = { ownProcess: true };
  expect(refused(await fleet.run(["spawn", "--user", "bob", "--json"], own)).message).toMatch(/read-only file system/);
  expect(refused(await fleet.run(["stop", "--user", "alice", "--json"], own)).message).toMatch(/read-only file system/);
  const shown = async () => (await fleet.json<{ servers: ServerView[] }>(["ps"], own)).servers;
  expect(await shown()).toMatchObject([{ user: "alice", state: "ready", pid }]);
  expect(await fleet.json(["spawn", "--user", "alice"], own)).toMatchObject({ created: false, server: { pid } });
  expect(fleet.servers()).toEqual([pid]);
  await killed(pid);
  expect(await shown()).toMatchObject([{ user: "alice", state: "failed", pid: null }]);
});

it.for([
  ["home", "-t tmpfs -o size=4k,nr_inodes=1", "no space left on device"],
  ["home", "-t tmpfs -o ro", "read-only file system"],
  ["token and log", "-t tmpfs -o size=4k,nr_inodes=3", "no space left on device"],
] as const)(
  "spawn starts no process when the server's %s cannot be written (mount %s)",
  async ([what, options, message], ctx) => {
    if (noMounts !== undefined) return ctx.skip(noMounts);
    const fleet = await faultFleet();
    // The registry is not in this folder, so spawn can record the start before the start fails.
    const folder = what === "home" ? join(fleet.root, "servers") : serverFolder(fleet.root, serverIdOf("alice"));
    mkdirSync(fleet.root, { mode: 0o700 });
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    mount(options, "none", folder);
    if (what !== "home") {
      mkdirSync(join(folder, "home"));
      fill(folder);
    }
    expect(refused(await fleet.run(["spawn", "--user", "alice", "--json"])).message).toContain(message);
    expect(fleet.processes()).toEqual([]);
    expect(await fleet.record("alice")).toMatchObject({ state: "failed", port: null, launchId: null, claim: null });
  },
);

it("a server that cannot write its log because its disk is full keeps serving and can be stopped", async (ctx) => {
  if (noMounts !== undefined) return ctx.skip(noMounts);
  const fleet = await faultFleet();
  const folder = serverFolder(fleet.root, serverIdOf("alice"));
  mkdirSync(fleet.root, { mode: 0o700 });
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  mount("-t tmpfs -o size=512k", "none", folder);
  const { pid, home } = await fleet.spawn("alice");
  const ballast = fill(folder);
  expect(statSync(ballast).size).toBeGreaterThan(100_000);
  expect(await fleet.json(["spawn", "--user", "alice"])).toMatchObject({ created: false, server: { pid } });
  expect(await fleet.json(["connect", "--user", "alice"])).toMatchObject({ user: "alice" });
  expect(await fleet.ps()).toMatchObject([{ state: "ready", pid }]);
  expect(await fleet.json(["stop", "--user", "alice"])).toMatchObject({ stopped: [{ outcome: "drained" }] });
  expect(fleet.processes()).toEqual([]);
  // The disk has no room for a new connection token, but the files of the earlier start still exist.
  refused(await fleet.run(["spawn", "--user", "alice", "--json"]));
  rmSync(ballast);
  expect(await fleet.spawn("alice")).toMatchObject({ state: "ready", home });
  expect(statSync(logPath(home)).mode & 0o777).toBe(0o600);
});

it("a command that may open too few files reports the limit in one line, and how to raise it", async (ctx) => {
  if (spawnSync("prlimit", ["--nofile=64", "true"]).status !== 0) return ctx.skip("needs prlimit");
  const fleet = await faultFleet();
  const refused: number[] = [];
  // Versions of Node.js differ in how many files they open before they run any of our code. So the limit is the same in
  // each try, and a preloaded script opens files until only `left` more can be opened.
  for (let left = 0; ; left++) {
    const env = { NODE_OPTIONS: `--require ${holdFiles}`, FILES_LEFT: String(left) };
    const { code, stderr } = await fleet.run(["ps"], { env, under: ["prlimit", "--nofile=48"] });
    if (code === 0) break;
    // With so few files, Node.js itself failed before it read any of our code.
    if (stderr.startsWith("node:")) continue;
    const [first, ...steps] = stderr.trimEnd().split("\n");
    expect(first).toBe("Error: This process may open only 48 files at once, which is too few. [FLEET_FILES_EXHAUSTED]");
    expect(steps).toEqual(["  Try: ulimit -n 1024", expect.stringMatching(/^ {2}Hint: .*LimitNOFILE=/)]);
    expect(code).toBe(7);
    refused.push(left);
  }
  expect(refused.length).toBeGreaterThan(0);
});

it("spawn reports that it or its server cannot open more files, and leaves no partial record", async (ctx) => {
  if (spawnSync("prlimit", ["--nofile=64", "true"]).status !== 0) return ctx.skip("needs prlimit");
  const fleet = await faultFleet();
  const under = (files: number) => ({ under: ["prlimit", `--nofile=${files}`] });
  // Node.js 22 opens two more files than Node.js 20 before it runs any of our code.
  let lowest = 19;
  while ((await fleet.run(["ps"], under(lowest))).code !== 0) lowest++;
  // Between the lowest and the highest of these limits, the command runs but cannot start the server.
  const results: Ran[] = [];
  for (let files = lowest; files < lowest + 8; files++) {
    const result = await fleet.run(["spawn", "--user", `with-${files}`], under(files));
    results.push(result);
    if (result.stderr.startsWith("Error:"))
      expect(result.stderr, `${files} files`).toMatch(/too many open files|EMFILE|FLEET_FILES_EXHAUSTED/);
    expect(result.stderr, `${files} files`).not.toMatch(/Unhandled|TypeError|bug in copilotfleet/);
    await expectConsistent(fleet);
  }
  expect(results.filter(({ code }) => code === 3 || code === 7).length).toBeGreaterThan(0);
  expect(results.at(-1)).toMatchObject({ code: 0 });
});

it("spawn reports that no more processes can be created, and leaves no partial record", async (ctx) => {
  if (process.getuid?.() !== 0) return ctx.skip("needs root, to become a user with few processes");
  const { fleet, under } = await userFleet();
  const limited = (threads: number) => [...under, "prlimit", `--nproc=${threads}`];
  const lowest = lowestThreads((threads) => [...limited(threads), fleet.node]);
  const results: Ran[] = [];
  for (let threads = lowest; threads <= lowest + rounds(2, 19); threads++) {
    const args = ["spawn", "--user", `u${threads}`, "--wait", "1s"];
    const result = await fleet.run(args, { under: limited(threads) });
    results.push(result);
    expect(result, `${threads} threads`).toMatchObject({
      code: expect.any(Number),
      stderr: expect.stringMatching(/^(Error: |$)/),
    });
    expect([0, 3, 6, 7]).toContain(result.code);
    const { servers } = await fleet.json<{ servers: { state: string }[] }>(["ps"], { under });
    expect(servers.filter(({ state }) => !["ready", "failed", "stopped"].includes(state))).toEqual([]);
    expect(fleet.servers()).toHaveLength(servers.filter(({ state }) => state === "ready").length);
    await fleet.json(["stop", "--all", "--force"], { under });
  }
  expect(results.filter(({ stderr }) => stderr.includes("no processes, file descriptors or memory left"))).not.toEqual(
    [],
  );
});

/**
 * The lowest limit on threads with which Node.js itself runs a script that uses the thread pool. With fewer threads,
 * Node.js 20 aborts, or waits for ever for the threads of its platform before it runs any of our code.
 */
function lowestThreads(node: (threads: number) => readonly string[]): number {
  const script = 'require("node:fs").readFile("/dev/null", () => undefined)';
  for (let threads = 8; threads < 64; threads++) {
    const [program = "", ...args] = [...node(threads), "-e", script];
    if (spawnSync(program, args, { timeout: 20_000, killSignal: "SIGKILL" }).status === 0) return threads;
  }
  throw new Error("Node.js needs more than 64 threads");
}

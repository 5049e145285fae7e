import { execFileSync, spawnSync } from "node:child_process";
import { appendFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { logPath } from "../../src/runtime/files/server-folder.js";
import { eventually } from "../fixtures/eventually.js";
import { expectConsistent, type FaultFleet, faultFleet, openFolder, rounds } from "../fixtures/fleets/fault-fleet.js";
import { FAST_HEALTH, type LogEntry, type Serving, serve } from "../fixtures/fleets/serve.js";
import { userFleet } from "../fixtures/fleets/user-fleet.js";
import { isRunning, killed, statusOf } from "../fixtures/processes.js";

/** The reason why no file system can be mounted here, or undefined if one can. */
const noMounts =
  process.getuid?.() === 0 && spawnSync("unshare", ["-m", "mount", "-t", "tmpfs", "none", "/mnt"]).status === 0
    ? undefined
    : "needs root and the right to mount";

function mount(options: string, ...argv: string[]): void {
  const at = argv.at(-1) ?? "";
  execFileSync("mount", [...options.split(" "), ...argv]);
  onTestFinished(() => void execFileSync("umount", ["-l", at]));
}

/** Writes to a new file until the file system is full. Returns the path of the file. */
function fill(folder: string): string {
  const path = join(folder, "ballast");
  onTestFinished(() => rmSync(path, { force: true }));
  for (const bytes of [65_536, 4_096, 1]) {
    try {
      for (;;) appendFileSync(path, Buffer.alloc(bytes));
    } catch {
      // there is no room for a block of this size
    }
  }
  return path;
}

function pidOf({ pid }: { pid: number | null }): number {
  if (pid === null) throw new Error("it does not run");
  return pid;
}

async function running(fleet: FaultFleet, user: string, not: number | null): Promise<number> {
  return await eventually(
    `another process of ${user}'s server`,
    async () => {
      const { state, process: found } = await fleet.record(user);
      return state === "ready" && found !== null && found.pid !== not && isRunning(found.pid) ? found.pid : undefined;
    },
    30_000,
  );
}

async function moreProbes(serving: Serving, count: number): Promise<void> {
  const before = await serving.metric("probes_total", { outcome: "ok" });
  await eventually(
    "more probes",
    async () => (await serving.metric("probes_total", { outcome: "ok" })) >= before + count,
  );
}

it("serve keeps a server whose log is on a full disk, and logs a warning", async (ctx) => {
  if (noMounts !== undefined) return ctx.skip(noMounts);
  const fleet = await faultFleet(FAST_HEALTH);
  const { pid, home } = await fleet.spawn("alice");
  await fleet.json(["stop", "--user", "alice"]);
  const disk = await openFolder();
  mount("-t tmpfs -o size=64k", "none", disk);
  const log = join(disk, "server.log");
  writeFileSync(log, "", { mode: 0o600 });
  mount("--bind", log, logPath(home));
  const again = await fleet.spawn("alice");
  fill(disk);
  const serving = await serve(fleet);
  expect(await serving.logged(/writes its log to a disk that is full$/)).toMatchObject({ level: "warn" });
  await fleet.json(["create", "--id", "talk", "--user", "alice", "--prompt", "hi"]);
  expect(await fleet.json(["send", "talk", "again", "--user", "alice"])).toMatchObject({ reply: "[turn 2] again" });
  await moreProbes(serving, 5);
  expect(await fleet.ps()).toMatchObject([{ state: "ready", pid: again.pid }]);
  expect(again.pid).not.toBe(pid);
  expect(await serving.readyz()).toMatchObject({ status: 200 });
  expect(await serving.end()).toMatchObject({ code: 0 });
});

it("serve leaves healthy servers alone while the state's disk is full, and restarts dead servers", async (ctx) => {
  if (noMounts !== undefined) return ctx.skip(noMounts);
  const folder = await openFolder();
  mount("-t tmpfs -o size=24m", "none", folder);
  const fleet = await faultFleet(FAST_HEALTH, { at: folder });
  const alice = pidOf(await fleet.spawn("alice"));
  const bob = pidOf(await fleet.spawn("bob"));
  await fleet.json(["create", "--id", "talk", "--user", "bob", "--prompt", "hi"]);
  const serving = await serve(fleet);
  expect(await serving.readyz()).toMatchObject({ status: 200 });

  const ballast = fill(folder);
  const full = await eventually("not ready", async () => {
    const verdict = await serving.readyz();
    return verdict.ok ? undefined : verdict;
  });
  expect(full).toMatchObject({ status: 503, reasons: ["the disk that holds the state is full"] });
  expect(await serving.healthz()).toMatchObject({ status: 200 });
  await moreProbes(serving, 20);
  expect([alice, bob].filter(isRunning)).toEqual([alice, bob]);
  expect(serving.log().filter(({ msg }) => msg.includes("disk that holds the state is full"))).toHaveLength(1);

  // One server dies. serve restarts it as soon as it has room: at once if its own old records make enough room.
  await killed(alice);
  await moreProbes(serving, 5);
  expect(isRunning(bob)).toBe(true);
  rmSync(ballast);
  const again = await running(fleet, "alice", alice);
  expect(again).not.toBe(alice);
  await eventually("ready", async () => (await serving.readyz()).ok);
  expect((await fleet.record("bob")).process?.pid).toBe(bob);
  expect(await fleet.json(["send", "talk", "again", "--user", "bob"])).toMatchObject({ reply: "[turn 2] again" });
  await expectConsistent(fleet);
  expect(await serving.end()).toMatchObject({ code: 0 });
});

it("no server keeps a stale claim when the disk fills up while serve restarts the server", async (ctx) => {
  if (noMounts !== undefined) return ctx.skip(noMounts);
  const folder = await openFolder();
  mount("-t tmpfs -o size=24m", "none", folder);
  // Each round crashes the server again. That must not count as a crash loop.
  const fleet = await faultFleet({ ...FAST_HEALTH, COPILOTFLEET_HEALTH_RESTARTS: "1000" }, { at: folder });
  await fleet.spawn("alice");
  const serving = await serve(fleet);
  for (let round = 0; round < rounds(3, 40); round++) {
    const pid = (await fleet.record("alice")).process?.pid ?? 0;
    const from = serving.log().length;
    // Fill the disk during the restart, when serve has recorded its claim on the server but may no longer be able to
    // record the end of the claim.
    await killed(pid);
    const stages = ["failed", "starting", "ready"];
    const stage = stages[round % stages.length] ?? "failed";
    await eventually(
      stage,
      async () => {
        const record = await fleet.record("alice");
        return (record.process?.pid !== pid && record.state === stage) || (stage === "failed" && record.claim !== null);
      },
      20_000,
    );
    const ballast = fill(folder);
    if (stage === "ready") await killed((await fleet.record("alice")).process?.pid ?? 0);
    await eventually("trouble, or a good end", async () => {
      const { state, process: found } = await fleet.record("alice");
      const troubles = serving.log().slice(from);
      return troubles.some(({ level }) => level === "error") || (state === "ready" && found?.pid !== pid);
    });
    rmSync(ballast);
    const next = await running(fleet, "alice", null);
    await eventually("ready", async () => (await serving.readyz()).ok);
    await expectConsistent(fleet);
    // The crashes must not add up, or serve waits longer and longer. A server that has run for 12 intervals counts as stable.
    const isWatched = ({ msg, serverPid }: LogEntry) => serverPid === next && msg.startsWith("watching");
    await eventually("the monitor", () => serving.log().some(isWatched));
    await moreProbes(serving, 13);
  }
  expect(await serving.end()).toMatchObject({ code: 0 });
});

it("serve drains its servers on a signal while the disk is full, because its own old records make room", async (ctx) => {
  if (noMounts !== undefined) return ctx.skip(noMounts);
  const folder = await openFolder();
  mount("-t tmpfs -o size=24m", "none", folder);
  const fleet = await faultFleet(FAST_HEALTH, { at: folder });
  const pid = pidOf(await fleet.spawn("alice"));
  const serving = await serve(fleet);
  const ballast = fill(folder);
  expect(await serving.end()).toMatchObject({ code: 0 });
  expect(isRunning(pid)).toBe(false);
  rmSync(ballast);
  expect(await fleet.ps()).toMatchObject([{ state: "stopped", pid: null }]);
});

it("serve leaves healthy servers alone while it cannot open more files, and works again afterwards", async (ctx) => {
  if (spawnSync("prlimit", ["--version"]).status !== 0) return ctx.skip("needs prlimit");
  const fleet = await faultFleet(FAST_HEALTH);
  const users = ["alice", "bob", "carol"];
  const pids: number[] = [];
  for (const user of users) pids.push(pidOf(await fleet.spawn(user)));
  const serving = await serve(fleet);
  const from = serving.log().length;
  const open = Number(spawnSync("sh", ["-c", `ls /proc/${serving.pid}/fd | wc -l`], { encoding: "utf8" }).stdout);
  for (const files of [0, open - 2, open + 1]) {
    execFileSync("prlimit", [`--nofile=${files}:4096`, "--pid", String(serving.pid)]);
    // In these 3 seconds, serve tries to open a new connection to each server for its probe.
    await stays(async () => pids.every(isRunning) && (await fleet.registry()).supervisors?.length === 1, 3_000);
  }
  expect(
    serving
      .log()
      .slice(from)
      .some(({ level, msg }) => level !== "info" && /limit|EMFILE|open files/.test(msg)),
  ).toBe(true);
  execFileSync("prlimit", ["--nofile=4096:4096", "--pid", String(serving.pid)]);
  await eventually("ready", async () => (await serving.readyz()).ok);
  await moreProbes(serving, 10);
  for (const [index, user] of users.entries()) {
    expect(await fleet.record(user)).toMatchObject({ state: "ready", process: { pid: pids[index] } });
  }
  expect(await serving.metric("server_restarts_total")).toBe(0);
  // serve can restart servers again.
  await killed(pids[0] ?? 0);
  await running(fleet, "alice", pids[0] ?? 0);
  await expectConsistent(fleet);
  expect(await serving.end()).toMatchObject({ code: 0 });
});

/** Calls `look` again and again for `forMs` milliseconds, and expects that it always resolves with true. */
async function stays(look: () => Promise<boolean>, forMs: number): Promise<void> {
  const until = performance.now() + forMs;
  await eventually(
    "the end of the time",
    async () => {
      expect(await look()).toBe(true);
      return performance.now() > until;
    },
    forMs + 20_000,
  );
}

it("when no more processes can be created, serve reports this, and retries with backoff until it succeeds", async (ctx) => {
  if (process.getuid?.() !== 0) return ctx.skip("needs root, to become a user with few processes");
  const { fleet, uid, under } = await userFleet(FAST_HEALTH);
  const { server } = await fleet.json<{ server: { pid: number } }>(["spawn", "--user", "alice"], { under });
  const serving = await serve(fleet, { under });
  const threads = statusOf(serving.pid).threads;
  const limit = (count: number) => {
    const [program = "", ...args] = [...under, "prlimit", `--nproc=${count}:`, "--pid", String(serving.pid)];
    execFileSync(program, args);
  };
  limit(threads);
  await killed(server.pid);
  const first = await serving.logged(/could not be started: .*no processes.*left \(EAGAIN\)/);
  expect(first).toMatchObject({ level: "error", code: "FLEET_RUNTIME_UNUSABLE" });
  // Wait for 5 tries, which would count as a crash loop if the server were to blame.
  const tries = await eventually(
    "more tries",
    () => {
      const all = serving.log().filter(({ msg }) => /could not be started/.test(msg));
      return all.length >= 5 ? all : undefined;
    },
    20_000,
  );
  const at = tries.map(({ time }) => Date.parse(String(time)));
  const gaps = at.slice(1).map((time, index) => time - (at[index] ?? 0));
  // The full waits are 100 ms, 200 ms, 400 ms and so on. Each real wait is a random part of that, at least half. A busy
  // machine can only lengthen the gaps.
  for (const [index, gap] of gaps.entries()) {
    expect(gap, `gaps ${gaps.join(", ")} ms`).toBeGreaterThanOrEqual(50 * 2 ** index);
  }
  const shown = () => fleet.json<{ servers: { state: string; pid: number | null }[] }>(["ps"], { under });
  expect(await serving.metric("servers", { state: "ready" })).toBe(0);
  // Poll, because the server counts as starting while serve tries again.
  await expect.poll(shown).toMatchObject({ servers: [{ state: "failed", port: null }] });
  limit(500);
  const { servers } = await eventually(
    "the server",
    async () => {
      const found = await shown();
      return found.servers[0]?.state === "ready" ? found : undefined;
    },
    30_000,
  );
  expect(servers[0]?.pid).not.toBe(server.pid);
  await eventually("ready", async () => (await serving.readyz()).ok);
  expect(await serving.end()).toMatchObject({ code: 0 });
  expect(statSync(fleet.root).uid).toBe(uid);
});

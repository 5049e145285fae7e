import { once } from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { Leases } from "../../src/sessions/leases.js";
import { openStore } from "../../src/store/store.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { eventually } from "../fixtures/eventually.js";
import { isRunning, processesWith } from "../fixtures/processes.js";
import { unused } from "../fixtures/sessions/unused.js";
import { Stopwatch } from "../fixtures/stopwatch.js";
import { sessionRecord } from "../fixtures/store/store-records.js";

const fleet = testFleet();
const leases = new Leases(openStore("file", fleet.root));

/**
 * Starts `lock SESSION -- sh -c SCRIPT` on a new session. Resolves when the script has written its PID and that of its
 * background child.
 */
async function lockRunning(script: string, flags: string[] = []) {
  const session = unused("notes");
  // The session has no server, because a lease does not need one.
  await openStore("file", fleet.root).sessions.create(sessionRecord(session));
  const pids = join(fleet.folder, `${session}.pids`);
  onTestFinished(() => {
    for (const pid of processesWith(`PIDS=${pids}`)) process.kill(pid, "SIGKILL");
  });
  const running = fleet.start(
    ["lock", session, "--user", "alice", ...flags, "--", "sh", "-c", `sleep 1000 & ${script}`],
    { env: { PIDS: pids } },
  );
  await eventually("the command runs", () => existsSync(pids) && readFileSync(pids, "utf8").endsWith("\n"));
  const [command = 0, child = 0] = readFileSync(pids, "utf8").trim().split(" ").map(Number);
  expect([command, child].map(isRunning)).toEqual([true, true]);
  return { ...running, session, command, started: child };
}

const WAITS = 'echo "$$ $!" > "$PIDS"; wait';

function next(sessionId: string) {
  return leases.acquire({ sessionId, holder: "bob", ttlMs: 60_000, waitMs: 40_000 });
}

describe("a command whose lease is lost", () => {
  it("if lock -- COMMAND is suspended for longer than its lease's TTL, it then ends COMMAND and exits with 5", async () => {
    const lock = await lockRunning(WAITS, ["--ttl", "5s"]);
    lock.child.kill("SIGSTOP");
    const lease = await next(lock.session);
    expect(isRunning(lock.command)).toBe(true);
    lock.child.kill("SIGCONT");
    const { code, stderr, stdout } = await lock.done;
    expect({ code, stdout }).toEqual({ code: 5, stdout: "" });
    expect(stderr.split("\n")[0]).toBe(
      `Error: The lease of "alice" on session "${lock.session}" is lost: it was not renewed in time. [FLEET_LEASE_LOST]`,
    );
    expect([lock.command, lock.started].map(isRunning)).toEqual([false, false]);
    await lease.check();
    await lease.release();
  });

  it("if a user steals the lease of lock -- COMMAND, lock ends COMMAND, and its error names the user and the reason", async () => {
    const lock = await lockRunning(WAITS, ["--json"]);
    const token = await fleet.ok(["lock", lock.session, "--user", "alice", "--steal", "--reason", "it hangs"]);
    const { code, json } = await lock.done;
    expect(code).toBe(5);
    expect(json()).toMatchObject({
      error: { code: "FLEET_LEASE_LOST", message: expect.stringContaining('"alice" took it over ("it hangs")') },
    });
    expect([lock.command, lock.started].map(isRunning)).toEqual([false, false]);
    await fleet.ok(["unlock", lock.session, "--token", token.trim()]);
  });

  it("if lock -- COMMAND loses its lease and COMMAND ignores SIGTERM, lock kills COMMAND after 5 seconds", async () => {
    const lock = await lockRunning(`trap "" TERM; (trap "" TERM; sleep 1000) & ${WAITS}`);
    const began = performance.now();
    await fleet.ok(["lock", lock.session, "--user", "alice", "--steal", "--reason", "enough"]);
    const { code } = await lock.done;
    expect(code).toBe(5);
    expect(performance.now() - began).toBeGreaterThan(5_000);
    expect([lock.command, lock.started].map(isRunning)).toEqual([false, false]);
  });
});

it("if lock -- COMMAND is killed, COMMAND keeps running, and the lease ends once its TTL is over", async () => {
  const lock = await lockRunning(WAITS, ["--ttl", "5s"]);
  const exited = once(lock.child, "exit");
  lock.child.kill("SIGKILL");
  await exited;
  using waited = new Stopwatch();
  const lease = await next(lock.session);
  expect(waited.ms).toBeLessThan(5_000 + 5_000);
  await lease.release();
  // lock made the command the leader of its own process group, so the command has survived.
  expect(isRunning(lock.command)).toBe(true);
  process.kill(-lock.command, "SIGKILL");
  await eventually("the command is gone", () => !isRunning(lock.command) && !isRunning(lock.started));
  // The command inherited the pipes of lock. lock.done waits until they close, so it resolves only now.
  await lock.done;
});

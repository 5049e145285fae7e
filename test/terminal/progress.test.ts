import { mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import type { Progress } from "../../src/base/progress.js";
import { Fleet } from "../../src/fleet/fleet.js";
import { testFleet } from "../fixtures/commands/cli.js";
import type { Running } from "../fixtures/commands/command.js";
import { Terminal } from "../fixtures/commands/terminal.js";
import { eventually } from "../fixtures/eventually.js";
import { lateServers } from "../fixtures/fleets/fault-fleet.js";
import { startHeldModel } from "../fixtures/models/held-model.js";
import { stepInHistory } from "../fixtures/sessions/session-history.js";
import { unused } from "../fixtures/sessions/unused.js";

/** Tests the progress line, which commands show on a terminal after a second. `gate` delays the start of servers. */

const gate = mkdtempSync(join(tmpdir(), "copilotfleet-gate-"));
const GATED_STARTS = lateServers(gate);
const openGate = () => writeFileSync(join(gate, "open"), "");
const model = await startHeldModel();
const fleet = testFleet({
  ...model.env,
  COPILOTFLEET_DRAIN_TIMEOUT: "10m",
  COPILOTFLEET_HEALTH_TIMEOUT: "2m",
  COPILOTFLEET_HEALTH_INTERVAL: "1m",
});
const CTRL_C = "\x03";

beforeAll(async () => {
  await fleet.create("alice", "notes");
  await fleet.ok(["create", "--user", "alice", "--id", "team", "--collaborative", "--member", "bob"]);
});
afterEach(async () => {
  model.release();
  rmSync(join(gate, "open"), { force: true });
  await fleet.ok(["drain", "--undo"]);
});
afterAll(async () => {
  await model.close();
  rmSync(gate, { recursive: true });
});

/** Begins a turn that lasts until the model releases it. */
async function heldTurn(session = "notes"): Promise<Running> {
  const running = await fleet.turn("alice", session, "!hold reply");
  // A failed test does not wait for the turn. Without this line, its rejection would count as an error of the run.
  running.done.catch(() => undefined);
  await eventually("the model", () => model.held() > 0);
  return running;
}

/** Expects that the terminal shows these lines and nothing of a progress line. */
function expectClean({ screen }: Terminal, lines: readonly unknown[]): void {
  expect(screen).toEqual({ lines, column: 0, isCursorVisible: true });
}

describe("a command that waits for a turn", () => {
  it.each([
    ["stop", ["stop", "--all"], /Stopping servers: 1 of 2\. /],
    ["drain", ["drain"], /Draining servers: 1 of 2\. /],
    ["restart", ["restart", "--all"], /Restarting servers: 0 of 2\. /],
  ])("%s on a terminal shows how many servers are done and which turn it waits for", async (_, args, progress) => {
    await fleet.spawn("bob");
    const sending = await heldTurn();
    await using terminal = new Terminal(fleet, args, { columns: 120 });
    const line = await terminal.line(progress);
    expect(line).toMatch(/Waiting up to (5\d\d|600) s for a turn in "notes" \(alice-2bd806c97f0e\)$/);
    expect(terminal.screen.isCursorVisible).toBe(false);
    model.release();
    expect(await terminal.done).toBe(0);
    const last = args[0] === "drain" ? [expect.stringMatching(/^The pool is closed\./)] : [];
    expectClean(terminal, [expect.stringMatching(/^SERVER/), expect.any(String), expect.any(String), ...last]);
    expect((await sending.done).stdout).toMatch(/reply\n$/);
  });

  it("restart --rolling on a terminal shows how many servers it has replaced and which turn it waits for", async () => {
    const bob = await fleet.spawn("bob");
    const id = unused("rolling");
    const { serverId } = await fleet.create("alice", id);
    const sending = await heldTurn(id);
    await using terminal = new Terminal(fleet, ["restart", "--rolling", bob.id, serverId], { columns: 120 });
    await terminal.line(
      /Replacing servers: 1 of 2\. Waiting up to \d+ s for a turn in "rolling-\d+" \(alice-2bd806c97f0e\)$/,
    );
    model.release();
    expect(await terminal.done).toBe(0);
    expectClean(terminal, [expect.stringMatching(/^SERVER/), expect.any(String), expect.any(String)]);
    expect((await sending.done).stdout).toMatch(/reply\n$/);
  });

  it("while stop waits for a turn, Ctrl-C leaves a clean line, a visible cursor and a running server", async () => {
    const sending = await heldTurn();
    await using terminal = new Terminal(fleet, ["stop", "--user", "alice"]);
    await terminal.line(/^\S Stopping servers\. Waiting up to/);
    terminal.type(CTRL_C);
    expect(await terminal.done).toBe(130);
    expectClean(terminal, [""]);
    expect(await fleet.record("alice")).toMatchObject({ state: "ready" });
    model.release();
    expect((await sending.done).code).toBe(0);
  });

  it("stop reports no progress in a pipe or with --json on a terminal", async () => {
    const sending = await heldTurn();
    const piped = fleet.start(["stop", "--user", "alice"]);
    await eventually("the drain", async () => (await fleet.record("alice")).state === "draining");
    await using json = new Terminal(fleet, ["stop", "--user", "alice", "--json"]);
    // This terminal starts last. When it shows its line, the other two commands have taken more than a second, too.
    await using terminal = new Terminal(fleet, ["stop", "--user", "alice"]);
    await terminal.line(/Stopping servers \(\d+ s\)/);
    model.release();
    await sending.done;
    expect(await piped.done).toMatchObject({ code: 0, stderr: "" });
    await Promise.all([json.done, terminal.done]);
    expect(json.raw).not.toContain("\x1b");
    expect(JSON.parse(json.raw)).toEqual({ stopped: [expect.objectContaining({ outcome: "already-stopped" })] });
  });
});

it("servers.spawnMany and servers.stop report how many servers are done and which turns they wait for", async () => {
  await using library = await Fleet.open({ env: fleet.env, cwd: fleet.folder });
  const seen: Progress[] = [];
  const onProgress = (progress: Progress) => void seen.push(progress);
  const { servers } = await library.servers.spawnMany(["alice", "bob"], { onProgress });
  expect(seen.at(-1)).toEqual({ done: 2, total: 2, turns: [] });
  const sending = await heldTurn();
  seen.length = 0;
  const ids = servers.map(({ id }) => id);
  const stopping = library.servers.stop(ids, { onProgress });
  await eventually("the turn", () => seen.at(-1)?.done === 1 && seen.at(-1)?.turns.length === 1);
  const turns = [{ serverId: ids[0], sessionIds: ["notes"], remainingMs: expect.any(Number) }];
  expect(seen.at(-1)).toEqual({ done: 1, total: 2, turns });
  model.release();
  await stopping;
  expect(seen.at(-1)).toEqual({ done: 2, total: 2, turns: [] });
  await sending.done;
});

describe("a command that starts a server", () => {
  it("spawn --count on a terminal shows how many servers have started", async () => {
    const user = unused("many");
    await fleet.spawn(`${user}-1`);
    await using terminal = new Terminal(fleet, ["spawn", "--user", user, "--count", "3"], { env: GATED_STARTS });
    await terminal.line(/^\S Starting servers: 1 of 3 \(\d+ s\)$/);
    openGate();
    expect(await terminal.done).toBe(0);
    expectClean(terminal, [expect.stringMatching(/^SERVER/), ...Array(3).fill(expect.stringMatching(/^many-/))]);
  });

  it("Ctrl-C while spawn waits on a terminal leaves a clean line and a visible cursor", async () => {
    await using terminal = new Terminal(fleet, ["spawn", "--user", unused("carol")], { env: GATED_STARTS });
    await terminal.line(/^\S Starting the server of carol-\d+ \(\d+ s\)$/);
    terminal.type(CTRL_C);
    expect(await terminal.done).toBe(130);
    expectClean(terminal, [""]);
  });

  it("create on a terminal shows that it waits for the server", async () => {
    await using terminal = new Terminal(fleet, ["create", "--user", unused("dave"), "--id", "first"], {
      env: GATED_STARTS,
    });
    await terminal.line(/^\S Creating the session \(\d+ s\)$/);
    openGate();
    expect(await terminal.done).toBe(0);
    expectClean(terminal, ["first", "If nobody uses this session, it expires in 30d."]);
  });

  it("doctor on a terminal names the check that is running", async () => {
    await using terminal = new Terminal(fleet, ["doctor"], { env: GATED_STARTS });
    await terminal.line(/^\S Checking: runtime \(\d+ s\)$/);
    openGate();
    await terminal.done;
    expect(terminal.screen.isCursorVisible).toBe(true);
    expect(terminal.screen.lines.filter((line) => line.includes("Checking"))).toEqual([]);
  });
});

describe("a command that waits for a reply", () => {
  it("send on a terminal shows that it waits for the reply, and then only the reply", async () => {
    await using terminal = new Terminal(fleet, ["send", "notes", "!hold hello", "--user", "alice"]);
    await terminal.line(/^\S Waiting for the reply \(\d+ s\)$/);
    await eventually("the model", () => model.held() > 0);
    model.release();
    expect(await terminal.done).toBe(0);
    expectClean(terminal, [expect.stringMatching(/^\[turn \d+\] hello$/)]);
  });

  it("send on a terminal shows that another turn runs in the user's private session", async () => {
    const sending = await heldTurn();
    await using terminal = new Terminal(fleet, ["send", "notes", "next", "--user", "alice"]);
    await terminal.line(/^\S Waiting for "notes": another turn runs in it\. Ctrl-C stops waiting\.$/);
    model.release();
    expect(await terminal.done).toBe(0);
    expectClean(terminal, [expect.stringMatching(/^\[turn \d+\] next$/)]);
    await sending.done;
  });

  it("send on a terminal shows which member's turn it waits for in a collaborative session", async () => {
    const sending = await heldTurn("team");
    await using terminal = new Terminal(fleet, ["send", "team", "next", "--user", "bob", "--wait", "10m"]);
    await terminal.line(/^\S Waiting for "team": alice holds it for (2\d\d|300) s more\. Ctrl-C stops waiting\.$/);
    model.release();
    expect(await terminal.done).toBe(0);
    expectClean(terminal, [expect.stringMatching(/^\[turn \d+\] next$/)]);
    await sending.done;
  });
});

describe("a command that waits for an answer of a server", () => {
  it.each([
    ["evict", ["evict", "notes", "team"], /^\S Unloading sessions: 0 of 2 \(\d+ s\)$/],
    ["gc", ["gc", "--ttl", "1s", "--user", "alice", "--yes"], /^\S Deleting unused sessions: 0 of \d \(\d+ s\)$/],
  ])("%s on a terminal shows how many sessions it has processed", async (_, args, progress) => {
    // Create an idle session for gc to delete. An earlier try of this test may have deleted the earlier ones.
    await fleet.create("alice", unused("idle"));
    const sending = await heldTurn();
    const { pid, home } = await fleet.server("alice");
    if (pid === null) throw new Error("the server of alice does not run");
    // gc asks the server only about sessions past their TTL. Nothing writes to the session until the turn is released.
    await stepInHistory(home, "notes");
    const history = join(home, "session-state", "notes", "events.jsonl");
    await eventually("the age of the session", () => Date.now() - statSync(history).mtimeMs > 1_000);
    process.kill(pid, "SIGSTOP");
    try {
      await using terminal = new Terminal(fleet, args);
      await terminal.line(progress);
      process.kill(pid, "SIGCONT");
      await terminal.done;
      expect(terminal.screen.isCursorVisible).toBe(true);
      expect(terminal.screen.lines.filter((line) => progress.test(line))).toEqual([]);
    } finally {
      process.kill(pid, "SIGCONT");
    }
    model.release();
    expect((await sending.done).code).toBe(0);
  });
});

import { expect, it } from "vitest";
import { RawClient } from "../door/raw-client.js";
import { faultFleet } from "../fixtures/fleets/fault-fleet.js";
import { serve } from "../fixtures/fleets/serve.js";
import { attach, straceProblem } from "../fixtures/store/store-strace.js";

const TURNS = 20;

/** The work of a turn besides passing frames on. `docs/architecture.md`, "The cost of a turn at the door", has the reasons. */
const PER_TURN = {
  'openat(AT_FDCWD, ".*/registry.json"': 1,
  'openat(AT_FDCWD, ".*/uses"': 1,
  'openat(AT_FDCWD, "/proc/\\d+/stat"': 2,
  'openat(AT_FDCWD, ".*/open/s"': 1,
  "openat(": 5,
  'statx(AT_FDCWD, ".*/state.db"': 1,
  'statx(AT_FDCWD, ".*/host.db"': 1,
  "link(": 1,
  "unlink(": 1,
  "mkdir(": 0,
  "rename(": 0,
  "fsync(": 0,
  "fdatasync(": 0,
};

it.skipIf(straceProblem() !== undefined)(
  "a turn through the front door writes each frame once, and opens a fixed number of files",
  async () => {
    const fleet = await faultFleet();
    // No check of the servers' health may fall into the measurement.
    const env = { COPILOTFLEET_SERVE_LISTEN: "127.0.0.1:0", COPILOTFLEET_HEALTH_INTERVAL: "10m" };
    const serving = await serve(fleet, { env });
    const door = String(serving.log().find(({ msg }) => msg === "serving")?.door);
    const { token } = JSON.parse(await fleet.ok(["token", "issue", "--user", "alice", "--json"])) as { token: string };
    const client = await RawClient.as(door, token);
    await client.requestOk("session.create", { sessionId: "s", streaming: true });
    await client.turnOk("s", "hello");
    const received = client.received.length;
    const calls = ["write", "writev", "pwrite64", "statx"];
    for (const call of Object.keys(PER_TURN)) calls.push(call.slice(0, call.indexOf("(")));
    const detach = await attach(serving.pid, `${fleet.root}/strace`, [`trace=${[...new Set(calls)].join()}`]);
    for (let turn = 0; turn < TURNS; turn++) await client.turnOk("s", "hello");
    const lines = (await detach()).split("\n");
    const frames = client.received.length - received + TURNS;

    const writes = lines.filter((line) => / write\(\d+, "(?:Content-Length|\{\\"jsonrpc)/.test(line));
    expect(writes.filter((line) => !line.includes(String.raw`\r\n\r\n{`))).toEqual([]);
    expect(writes.length).toBeGreaterThanOrEqual(TURNS * 2);
    expect(writes.length).toBeLessThanOrEqual(frames);
    // The last call of the last turn may be missing, and the other work of `serve` may make a few such calls, too.
    const perTurnOf = (count: number) => Math.floor((count + 1) / TURNS);
    const perTurn = Object.keys(PER_TURN).map((call) => {
      const pattern = new RegExp(`^\\d+ +${call.replace("(", "\\(")}`);
      return [call, perTurnOf(lines.filter((line) => pattern.test(line)).length)];
    });
    expect(Object.fromEntries(perTurn)).toEqual(PER_TURN);
    // The ledger: the beginning of the turn, its model request and its end. A fast turn appends them together.
    const appended = lines.filter((line) => /statx\(AT_FDCWD, ".*\/ledger.db"/.test(line)).length;
    expect([1, 2, 3]).toContain(perTurnOf(appended));
  },
);

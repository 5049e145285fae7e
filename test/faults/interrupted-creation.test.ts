import { mkdtempSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { testFleet } from "../fixtures/commands/cli.js";
import { eventually } from "../fixtures/eventually.js";
import { faultFleet, lateServers } from "../fixtures/fleets/fault-fleet.js";
import { unused } from "../fixtures/sessions/unused.js";

const fleet = testFleet();
const NONE = "Interrupted: no session was created.";

const sessionsOf = async (user: string) =>
  (await fleet.json<{ sessions: { id: string }[] }>(["list", "--user", user])).sessions.map(({ id }) => id);

describe("Ctrl-C while create works", () => {
  it("Ctrl-C while the server opens the session leaves no session, and a later create can use the id", async () => {
    const id = unused("held");
    const { pid } = await fleet.spawn("alice");
    process.kill(pid ?? 0, "SIGSTOP");
    const running = fleet.start(["create", "--user", "alice", "--id", id, "--prompt", "hello"]);
    try {
      await eventually("the record", () => fleet.sessionIds().includes(id));
      running.child.kill("SIGINT");
      expect(await running.done).toMatchObject({ code: 130, stdout: "", stderr: `${NONE}\n` });
    } finally {
      process.kill(pid ?? 0, "SIGCONT");
    }
    expect(await sessionsOf("alice")).not.toContain(id);
    await fleet.create("alice", id);
    expect(await fleet.send("alice", id, "hello")).toBe("[turn 1] hello");
  });

  it("Ctrl-C while the server starts leaves neither a session nor a server", async () => {
    const late = await faultFleet();
    Object.assign(late.env, lateServers(mkdtempSync(join(late.folder, "gate-"))));
    const running = late.start(["create", "--user", "bob", "--id", "late"]);
    await eventually("the start", () => late.processes().length > 0);
    running.child.kill("SIGINT");
    expect(await running.done).toMatchObject({ code: 130, stdout: "", stderr: `${NONE}\n` });
    expect(late.processes()).toEqual([]);
    expect(late.sessionIds()).toEqual([]);
    writeFileSync(join(late.env.GATE_FOLDER ?? "", "open"), "");
    await late.create("bob", "late");
  });
});

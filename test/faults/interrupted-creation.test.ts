import { mkdtempSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { FleetError } from "../../src/base/errors.js";
import { Interrupted } from "../../src/cli/prompt.js";
import { createInterruptibly } from "../../src/cli/turn.js";
import { Fleet } from "../../src/fleet/fleet.js";
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

describe("the message of an interrupted create", () => {
  /** Returns the message that `create` prints if Ctrl-C comes at the end of `work`. */
  async function noteAfter(user: string, work: (fleet: Fleet) => ReturnType<Fleet["sessions"]["create"]>) {
    await using own = await Fleet.open({ env: fleet.env, cwd: fleet.folder });
    const ctrlC = new AbortController();
    const interrupted = new Interrupted("SIGINT");
    const creating = createInterruptibly(own, { user, signal: ctrlC.signal }, async () =>
      work(own).finally(() => ctrlC.abort(interrupted)),
    );
    await expect(creating).rejects.toBeInstanceOf(Error);
    return interrupted.note;
  }

  it("create deletes a session that the server had opened before Ctrl-C", async () => {
    await fleet.spawn("carol");
    const id = unused("late");
    expect(await noteAfter("carol", (own) => own.sessions.create({ user: "carol", sessionId: id }))).toBe(NONE);
    expect(await sessionsOf("carol")).toEqual([]);
  });

  it("after Ctrl-C, create names the server that it started and the command that stops the server", async () => {
    const user = unused("dave");
    const note = await noteAfter(user, (own) => own.sessions.create({ user }));
    const { id } = await fleet.server(user);
    expect(note).toBe(`${NONE} Its server still runs. To stop it: copilotfleet stop ${id}`);
    await fleet.ok(["stop", id]);
    expect((await fleet.server(user)).pid).toBeNull();
  });

  it("after Ctrl-C and a store error, create names the command that shows whether the session exists", async () => {
    const note = await noteAfter("erin", async () => {
      throw new FleetError("FLEET_STATE_UNWRITABLE", "no space left on device");
    });
    expect(note).toBe("Interrupted: a session may have been created. To see it: copilotfleet list --user erin");
  });
});

import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { historyPath } from "../../src/runtime/history/session-state.js";
import type { SessionView } from "../../src/sessions/view.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { eventually } from "../fixtures/eventually.js";
import { startHeldModel } from "../fixtures/models/held-model.js";
import { isRunning } from "../fixtures/processes.js";
import { unused } from "../fixtures/sessions/unused.js";

const fleet = testFleet();
const ALICE = ["--user", "alice"];

async function kill(user: string): Promise<void> {
  const pid = await fleet.pidOf(user);
  process.kill(pid, "SIGKILL");
  await eventually("the server's death", () => !isRunning(pid));
}

describe("a session that one command creates and later commands continue", () => {
  it("a session that was created without a prompt accepts its first prompt from a later send", async () => {
    await fleet.create("alice", "fresh");
    expect(await fleet.send("alice", "fresh", "hello")).toBe("[turn 1] hello");
  });

  it("a session that was created without a prompt accepts its first prompt even after its server was killed", async () => {
    await fleet.create("alice", "fresh-killed");
    await kill("alice");
    expect(await fleet.ok(["resume", "fresh-killed", ...ALICE])).toBe("fresh-killed\n");
    expect(await fleet.send("alice", "fresh-killed", "hello")).toBe("[turn 1] hello");
  });

  it("a session keeps its history when its server is killed, stopped and restarted", async () => {
    await fleet.create("alice", "long");
    expect(await fleet.send("alice", "long", "one")).toBe("[turn 1] one");
    await kill("alice");
    expect(await fleet.send("alice", "long", "two")).toBe("[turn 2] two");
    await fleet.ok(["stop", ...ALICE]);
    expect(await fleet.send("alice", "long", "three")).toBe("[turn 3] three");
    const before = await fleet.server("alice");
    await fleet.ok(["restart", ...ALICE]);
    const after = await fleet.server("alice");
    expect(after).toMatchObject({ port: before.port, home: before.home });
    expect(after.pid).not.toBe(before.pid);
    expect(await fleet.send("alice", "long", "four")).toBe("[turn 4] four");
  });

  it("send refuses a session whose history was removed from disk, and does not start a new history", async () => {
    await fleet.create("alice", "lost");
    await fleet.send("alice", "lost", "one");
    const { home } = await fleet.server("alice");
    rmSync(join(home, "session-state", "lost"), { recursive: true });
    expect(await fleet.refusal(5, ["send", "lost", "two", ...ALICE])).toMatchObject({
      code: "FLEET_SESSION_LOST",
      suggestions: [expect.stringContaining("backup"), "copilotfleet delete lost"],
    });
    expect(existsSync(join(home, "session-state", "lost"))).toBe(false);
    const { sessions } = await fleet.json<{ sessions: SessionView[] }>(["list", "--state", "gone"]);
    expect(sessions.map(({ id }) => id)).toEqual(["lost"]);
  });
});

describe("send", () => {
  beforeAll(async () => {
    await fleet.create("alice", "talk");
  });

  it("send passes a prompt on unchanged: several lines, markup, 200 kB, and text that looks like a flag", async () => {
    await fleet.create("alice", "text");
    const piped = await fleet.run(["send", "text", "-", ...ALICE], {
      input: "line one\n\n  line <b>two</b> \u00e9\u{1f600}",
    });
    expect(piped).toMatchObject({
      code: 0,
      stdout: "[turn 1] line one\n\n  line <b>two</b> \u00e9\u{1f600}\n",
      stderr: "",
    });
    expect(await fleet.send("alice", "text", "--not-a-flag is fine".slice(2))).toBe("[turn 2] not-a-flag is fine");
    const large = "x".repeat(200_000); // one word, because the echo model streams each word as a separate event
    const ran = await fleet.run(["send", "text", "-", ...ALICE, "--json"], { input: large });
    expect(ran.json<{ reply: string }>().reply === `[turn 3] ${large}`).toBe(true);
    expect((await fleet.run(["send", ...ALICE, "text", "--", "--dashes"])).stdout).toBe("[turn 4] --dashes\n");
  });

  it("send exits with 7 and the reason when a turn fails, and the session takes the next prompt", async () => {
    expect(await fleet.refusal(7, ["send", "talk", "!fail no such luck", ...ALICE])).toMatchObject({
      code: "FLEET_TURN_FAILED",
      message: expect.stringContaining("no such luck"),
    });
    const ran = await fleet.run(["send", "talk", "!fail no such luck", ...ALICE]);
    expect(ran).toMatchObject({
      code: 7,
      stdout: "",
      stderr: expect.stringMatching(/^Error: The turn failed: .*no such luck/),
    });
    expect(await fleet.send("alice", "talk", "on")).toMatch(/^\[turn \d+\] on$/);
  });

  it("send exits with 6 when its turn takes longer than --timeout, and the session takes the next prompt at once", async () => {
    expect(await fleet.refusal(6, ["send", "talk", "!delay 60000 x", ...ALICE, "--timeout", "300ms"])).toMatchObject({
      code: "FLEET_TURN_TIMEOUT",
      message: expect.stringContaining("300ms"),
    });
    expect(await fleet.send("alice", "talk", "next")).toMatch(/^\[turn \d+\] next$/);
  });

  it.each([
    ["SIGINT", 130],
    ["SIGTERM", 143],
  ] as const)(
    "on %s, send exits with %i and reports that it cancelled the turn, and the session takes the next prompt at once",
    async (signal, exit) => {
      const turn = await fleet.turn("alice", "talk", "!delay 60000 x");
      turn.child.kill(signal);
      expect(await turn.done).toMatchObject({
        code: exit,
        stdout: "",
        stderr: 'Interrupted: the turn was cancelled. The session "talk" still exists.\n',
      });
      expect(await fleet.send("alice", "talk", "next")).toMatch(/^\[turn \d+\] next$/);
    },
  );

  it("send fails at once with exit code 7 when the server is killed during the turn", async () => {
    const prompt = `!delay 60000 ${unused("x")}`;
    const turn = await fleet.turn("alice", "talk", prompt, ["--json"]);
    // Kill the server only once the prompt is in the history. Before that, the turn has not begun, and send would send
    // the prompt again.
    const history = historyPath((await fleet.record("alice")).home, "talk");
    await eventually("the prompt", () => existsSync(history) && readFileSync(history, "utf8").includes(prompt));
    await kill("alice");
    const ran = await turn.done;
    expect(ran).toMatchObject({ code: 7, stderr: "" });
    expect(ran.json()).toMatchObject({ error: { code: "FLEET_SERVER_LOST" } });
    expect(await fleet.send("alice", "talk", "next")).toMatch(/^\[turn \d+\] next$/);
  });

  it("four creates and four sends at the same time for one user share one server", async () => {
    const ids = ["c1", "c2", "c3", "c4"];
    await fleet.ok(["stop", ...ALICE]);
    const apart = { ownProcess: true };
    await Promise.all(ids.map((id) => fleet.create("alice", id, apart)));
    const replies = await Promise.all(ids.map((id) => fleet.send("alice", id, id, apart)));
    expect(replies).toEqual(ids.map((id) => `[turn 1] ${id}`));
    expect(fleet.servers()).toHaveLength(1);
  });
});

describe("create", () => {
  it("create keeps its session when the first prompt fails, and reports the session's id as text or JSON", async () => {
    const text = await fleet.run(["create", ...ALICE, "--id", "half", "--prompt", "!fail nope"]);
    expect(text).toMatchObject({ code: 7, stdout: "half\n", stderr: expect.stringContaining("nope") });
    const error = await fleet.refusal(7, ["create", ...ALICE, "--prompt", "!fail nope"]);
    const id = /[0-9a-f-]{36}/.exec(error.suggestions.join("\n"))?.[0] ?? "no id";
    expect(await fleet.send("alice", id, "on")).toMatch(/^\[turn \d+\] on$/);
  });

  it.each([
    [[], 'The session "cancelled-0" still exists.'],
    [["--ephemeral"], 'The ephemeral session "cancelled-1" was deleted.'],
  ])("create with a first prompt and %j reports after Ctrl-C what became of its session", async (flags, remains) => {
    const id = `cancelled-${flags.length}`;
    const running = fleet.start(["create", ...ALICE, "--id", id, "--prompt", "!delay 60000 x", ...flags], {
      ownProcess: true,
    });
    await eventually("the turn", async () => await fleet.inTurn("alice", id));
    running.child.kill("SIGINT");
    expect(await running.done).toMatchObject({
      code: 130,
      stderr: `Interrupted: the turn was cancelled. ${remains}\n`,
    });
    const { sessions } = await fleet.json<{ sessions: { id: string }[] }>(["list", ...ALICE]);
    expect(sessions.some((session) => session.id === id)).toBe(flags.length === 0);
  });

  it("create exits with 3 and explains how to get a model when none is configured", async () => {
    const env = { COPILOTFLEET_PROVIDER_TYPE: undefined };
    const error = await fleet.refusal(3, ["create", ...ALICE, "--id", "dumb", "--prompt", "hi"], { env });
    expect(error).toMatchObject({
      code: "FLEET_MODEL_UNCONFIGURED",
      message: expect.stringMatching(/ No session was created, and the prompt was not sent\.$/),
      suggestions: [
        "copilotfleet init",
        "COPILOTFLEET_PROVIDER_TYPE=echo copilotfleet create --user alice --prompt hello",
      ],
    });
    expect(await fleet.refusal(4, ["describe", "dumb"])).toMatchObject({ code: "FLEET_NAME_NOT_FOUND" });
    const nobody = ["--user", "nobody"];
    await fleet.refusal(3, ["create", ...nobody, "--prompt", "hi"], { env });
    expect(await fleet.json(["ps", ...nobody])).toMatchObject({ servers: [] });
    // Without a prompt, create needs no model.
    expect(await fleet.ok(["create", ...ALICE, "--id", "dumb"], { env })).toBe("dumb\n");
    expect(await fleet.send("alice", "dumb", "hi")).toMatch(/ hi$/);
  });
});

describe("delete", () => {
  it("delete exits with code 5 for a session that is in a turn, and deletes it after the turn", async () => {
    await using model = await startHeldModel();
    const id = unused("busy");
    await fleet.create("alice", id, { env: model.env });
    const turn = fleet.start(["send", id, "!hold done", ...ALICE], { env: model.env });
    await eventually("the turn", () => model.held() === 1);
    expect(await fleet.refusal(5, ["delete", id])).toMatchObject({ code: "FLEET_SESSION_BUSY" });
    model.release();
    expect(await turn.done).toMatchObject({ code: 0, stdout: "[turn 1] done\n", stderr: "" });
    expect(await fleet.ok(["delete", id])).toBe(`${id}\n`);
  });

  it("delete works while the server is stopped, and create can use the id again", async () => {
    await fleet.create("alice", "again");
    await fleet.send("alice", "again", "one");
    await fleet.ok(["stop", ...ALICE]);
    expect(await fleet.ok(["delete", "again"])).toBe("again\n");
    await fleet.create("alice", "again");
    expect(await fleet.send("alice", "again", "one")).toBe("[turn 1] one");
  });
});

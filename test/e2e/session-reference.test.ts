import { beforeAll, describe, expect, it } from "vitest";
import { ERRORS } from "../../src/base/errors.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { Terminal } from "../fixtures/commands/terminal.js";

/** Tests that a person can name a session by a part of its id, and that no command then uses a different session. */

const fleet = testFleet();
const ID = "605decd7-aa91-4c1e-8f27-9a42a5f35dae";
const START = "605decd7";
const ALICE = ["--user", "alice"];

/** Runs a command on a terminal. Resolves with its output. */
async function onTerminal(args: readonly string[]): Promise<string> {
  await using terminal = new Terminal(fleet, args, { columns: 120 });
  expect(await terminal.done, terminal.text).toBe(0);
  return terminal.text;
}

beforeAll(async () => {
  await fleet.create("alice", ID);
  for (const id of ["ab", "abc-1", "abc-2"]) await fleet.create("alice", id);
  await fleet.create("bob", "605-of-bob");
});

describe("the beginning of a session's id", () => {
  it.each<[args: string[], shown: RegExp]>([
    [["send", START, "hello", ...ALICE], /hello\n$/],
    [["resume", START, "--prompt", "again", ...ALICE], /again\n$/],
    [["evict", START], new RegExp(`\\n${ID} +(evicted|skipped: not active)\\n`)],
  ])("%j on a terminal uses the session whose id begins with that text, and prints the id", async (args, shown) => {
    const text = await onTerminal(args);
    expect(text).toContain(`Session: ${ID}\n`);
    expect(text).toMatch(shown);
  });

  it.each<[args: string[], stdout: RegExp]>([
    [["transcript", START, ...ALICE], /hello/],
    [["lock", START, "--show"], /./],
  ])("%j uses the session whose id begins with that text, and prints its id on stderr", async (args, stdout) => {
    const ran = await fleet.run(args);
    expect(ran).toMatchObject({ code: 0, stderr: `Session: ${ID}\n`, stdout: expect.stringMatching(stdout) });
  });

  it.each([
    [["send", START, "to nobody", ...ALICE]],
    [["resume", START, "--prompt", "to nobody", ...ALICE]],
    [["evict", START]],
    [["lock", START, ...ALICE]],
  ])("%j in a script is refused, because the beginning of a deleted id could name another session", async (args) => {
    expect(await fleet.refusal(4, args)).toMatchObject({ code: "FLEET_SESSION_NOT_FOUND" });
    expect(await fleet.ok(["transcript", ID, ...ALICE])).not.toContain("to nobody");
  });

  it("lock and unlock on a terminal accept the beginning of a session's id", async () => {
    const token = /^[\w-]{20,}$/m.exec(await onTerminal(["lock", START, ...ALICE]))?.[0] ?? "";
    expect(await fleet.json(["lock", ID, "--show"])).toMatchObject({ lease: { sessionId: ID } });
    expect(await onTerminal(["unlock", START, "--token", token])).toBe(`Session: ${ID}\n${ID}\n`);
  });

  it("describe accepts the beginning of a session's id, with and without session/", async () => {
    const described = { kind: "session", session: { id: ID } };
    expect(await fleet.json(["describe", START])).toMatchObject(described);
    expect(await fleet.json(["describe", `session/${START}`])).toMatchObject(described);
  });

  it("the beginning of an id does not match a session that the user may not use", async () => {
    const args = ["transcript", "605d", "--user", "bob"];
    expect(await fleet.refusal(4, args)).toMatchObject({ code: "FLEET_SESSION_NOT_FOUND" });
    const own = await fleet.run(["transcript", "605", "--user", "bob"]);
    expect(own).toMatchObject({ code: 0, stderr: expect.stringContaining("Session: 605-of-bob\n") });
  });

  it("the beginning of a user's own session id wins over the whole id of another user's session", async () => {
    await fleet.create("alice", "plan-of-alice");
    await fleet.create("bob", "plan");
    const own = await fleet.run(["transcript", "plan", ...ALICE]);
    expect(own).toMatchObject({ code: 0, stderr: expect.stringContaining("Session: plan-of-alice\n") });
    expect(await fleet.json(["transcript", "plan", "--user", "bob"])).toMatchObject({ session: { id: "plan" } });
    expect(await fleet.refusal(4, ["transcript", "plan", "--user", "carol"])).toMatchObject({
      code: "FLEET_SESSION_NOT_FOUND",
    });
  });

  it("a whole session id names its session, even if other ids begin with it", async () => {
    expect(await fleet.send("alice", "ab", "to ab")).toContain("to ab");
    expect(await fleet.json(["transcript", "ab", ...ALICE])).toMatchObject({ session: { id: "ab" } });
  });

  it("the beginning of several session ids is refused, and the error lists all matching ids", async () => {
    const error = await fleet.refusal(5, ["transcript", "abc", ...ALICE]);
    expect(error).toMatchObject({
      code: "FLEET_SESSION_AMBIGUOUS",
      message: expect.stringMatching(/^"abc" matches 2 sessions: (abc-1, abc-2|abc-2, abc-1)\.$/),
    });
    expect(error.suggestions).toContainEqual(expect.stringContaining("copilotfleet list -q"));
    expect(await fleet.refusal(5, ["describe", "abc"])).toMatchObject({ code: "FLEET_SESSION_AMBIGUOUS" });
  });
});

describe("an id that a table has cut", () => {
  it("an id that list cuts at 80 columns names the session in other commands", async () => {
    await using terminal = new Terminal(fleet, ["list", ...ALICE], { columns: 80 });
    await terminal.done;
    const [cut = ""] = /605\S*…\S*/.exec(terminal.screen.lines.join("\n")) ?? [];
    expect(cut).not.toBe("");
    expect(await fleet.json(["transcript", cut, ...ALICE])).toMatchObject({ session: { id: ID } });
    expect(await fleet.json(["describe", cut])).toMatchObject({ session: { id: ID } });
  });

  it("a cut id that matches no session is refused with exit code 4 and a hint to list whole ids", async () => {
    const error = await fleet.refusal(4, ["send", "605…zzz", "hello", ...ALICE]);
    expect(error.code).toBe("FLEET_SESSION_NOT_FOUND");
    expect(error.suggestions).toContainEqual(expect.stringContaining("copilotfleet list -q"));
  });
});

describe("delete with the beginning of an id", () => {
  it.each([
    [["--yes"], 4, START],
    [[], 4, START],
    [["--yes"], 2, `${START}…`],
  ])(
    "delete in a script with %j deletes nothing, exits with %i, and shows the whole id of %s",
    async (flags, exit, id) => {
      const error = await fleet.refusal(exit, ["delete", id, ...flags]);
      expect(error.suggestions).toContain(`copilotfleet delete ${ID}`);
      expect(fleet.sessionIds()).toContain(ID);
    },
  );

  it("delete on a terminal shows the whole id in its question, and deletes that session after a yes", async () => {
    await fleet.create("alice", "victim-of-delete");
    await using terminal = new Terminal(fleet, ["delete", "victim"], { columns: 120 });
    await terminal.line(/ \[y\/N\]$/);
    terminal.type("y\r");
    expect(await terminal.done).toBe(0);
    expect(terminal.screen.lines).toEqual([
      "Delete the session victim-of-delete of alice with its history? [y/N] y",
      "victim-of-delete",
    ]);
    expect(fleet.sessionIds()).not.toContain("victim-of-delete");
  });

  it("delete on a terminal deletes nothing when the beginning matches several sessions", async () => {
    await using terminal = new Terminal(fleet, ["delete", "abc"]);
    expect(await terminal.done).toBe(ERRORS.FLEET_SESSION_AMBIGUOUS.exit);
    expect(fleet.sessionIds()).toEqual(expect.arrayContaining(["abc-1", "abc-2"]));
  });
});

import { beforeAll, describe, expect, it } from "vitest";
import { testFleet } from "../fixtures/commands/cli.js";
import { Terminal } from "../fixtures/commands/terminal.js";
import { unused } from "../fixtures/sessions/unused.js";

/** Tests that commands on a terminal ask before they remove something that no other command can bring back. */

const fleet = testFleet();
const CTRL_C = "\x03";
const CTRL_D = "\x04";

beforeAll(async () => {
  await fleet.create("alice", "kept");
});

/** Runs a command on a terminal, waits for its question, and answers it. */
async function answered(args: readonly string[], answer: string): Promise<Terminal> {
  const terminal = new Terminal(fleet, args, { columns: 120 });
  await terminal.line(/ \[y\/N\]$/);
  terminal.type(answer);
  await terminal.done;
  return terminal;
}

/** Runs a command on a terminal, and checks that it asks for no confirmation. Resolves with its exit code. */
async function unasked(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<number | null> {
  await using terminal = new Terminal(fleet, args, { env });
  const code = await terminal.done;
  expect(terminal.text).not.toContain("[y/N]");
  return code;
}

describe("delete on a terminal", () => {
  it.each([
    ["n", "n\r", "n", ["Nothing was changed."]],
    ["Enter", "\r", "", ["Nothing was changed."]],
    ["another word", "yep\r", "yep", ["Nothing was changed."]],
    ["Ctrl-D", CTRL_D, "", ["Nothing was changed."]],
    ["Ctrl-C", CTRL_C, "^C", []],
  ])("delete on a terminal deletes nothing, and exits with 130, if the answer is %s", async (_, keys, echo, after) => {
    await using terminal = await answered(["delete", "kept"], keys);
    expect(await terminal.done).toBe(130);
    const question = `Delete the session kept of alice with its history? [y/N] ${echo}`.trimEnd();
    expect(terminal.screen).toEqual({ lines: [question, ...after], column: 0, isCursorVisible: true });
    expect(fleet.sessionIds()).toContain("kept");
  });

  it("delete on a terminal names the owners of all sessions, and deletes them after a yes", async () => {
    for (const id of ["a", "b"]) await fleet.create("alice", id);
    await fleet.create("bob", "c");
    await using terminal = await answered(["delete", "b", "c", "a", "unknown", "--ignore-not-found"], "Yes\r");
    expect(await terminal.done).toBe(0);
    expect(terminal.screen.lines).toEqual([
      expect.stringMatching(
        /^Delete 3 sessions with their history \((alice: (a, b|b, a)|bob: c|; ){3}\)\? \[y\/N\] Yes$/,
      ),
      "b",
      "c",
      "a",
    ]);
    expect(fleet.sessionIds()).toEqual(["kept"]);
  });

  it("delete on a terminal does not ask about a session that does not exist or belongs to another user", async () => {
    expect(await unasked(["delete", "unknown"])).toBe(4);
    expect(await unasked(["delete", "kept", "--user", "bob"])).toBe(4);
    expect(fleet.sessionIds()).toEqual(["kept"]);
  });

  it.each([
    ["with --yes", ["--yes"], {}],
    ["with -y", ["-y"], {}],
    ["with --json", ["--json"], {}],
    ["in continuous integration", [], { CI: "true" }],
  ])("delete on a terminal does not ask %s", async (how, flags, env) => {
    const id = how.replaceAll(/\W+/g, "-");
    await fleet.create("alice", id);
    expect(await unasked(["delete", id, ...flags], env)).toBe(0);
    expect(fleet.sessionIds()).not.toContain(id);
  });
});

describe("gc on a terminal", () => {
  it("gc on a terminal names the sessions that it would delete, and deletes exactly these after a yes", async () => {
    for (const id of ["old-1", "old-2"]) await fleet.ok(["create", "--user", "carol", "--id", id, "--ttl", "1ms"]);
    await fleet.ok(["create", "--user", "carol", "--id", "young", "--ttl", "1h"]);
    const gc = ["gc", "--user", "carol"];
    await using refused = await answered(gc, "n\r");
    expect(await refused.done).toBe(130);
    expect(refused.screen.lines[0]).toMatch(
      /^Delete 2 sessions of carol with their history: (old-1, old-2|old-2, old-1)\? \[y\/N\] n$/,
    );
    await using terminal = new Terminal(fleet, gc);
    await terminal.line(/ \[y\/N\]$/);
    // This session is past its TTL when gc deletes the others, but the question did not name it.
    await fleet.ok(["create", "--user", "carol", "--id", "late", "--ttl", "1ms"]);
    terminal.type("y\r");
    expect(await terminal.done).toBe(0);
    expect(terminal.screen.lines.at(-1)).toMatch(/^gc: deleted 2 sessions/);
    expect(fleet.sessionIds().toSorted()).toEqual(["kept", "late", "young"]);
    await fleet.ok(["delete", "late", "young"]);
  });

  it("gc on a terminal does not ask if there is nothing to delete, in a dry run, or with --yes", async () => {
    await fleet.ok(["create", "--user", "dave", "--id", "due", "--ttl", "1ms"]);
    expect(await unasked(["gc", "--user", "bob"])).toBe(0);
    expect(await unasked(["gc", "--user", "dave", "--dry-run"])).toBe(0);
    expect(fleet.sessionIds()).toContain("due");
    expect(await unasked(["gc", "--user", "dave", "--yes"])).toBe(0);
    expect(fleet.sessionIds()).not.toContain("due");
  });
});

describe("token revoke on a terminal", () => {
  it("token revoke on a terminal names the tokens and revokes them only after a yes", async () => {
    const user = unused("tess");
    const issue = async () => (await fleet.json<{ id: string }>(["token", "issue", "--user", user])).id;
    const [first, second] = [await issue(), await issue()];
    const ids = async () => {
      const { tokens } = await fleet.json<{ tokens: { id: string; user: string }[] }>(["token", "list"]);
      const own = tokens.filter((token) => token.user === user);
      return own.map(({ id }) => id).toSorted();
    };
    await using refused = await answered(["token", "revoke", "--user", user], "n\r");
    expect(await refused.done).toBe(130);
    expect(refused.screen.lines[0]).toMatch(
      /^Revoke 2 tokens of tess-\d+ and disconnect their clients: \w{16}, \w{16}\? \[y\/N\] n$/,
    );
    expect(await ids()).toEqual([first, second].toSorted());
    await using agreed = await answered(["token", "revoke", first], "y\r");
    expect(agreed.screen.lines).toEqual([
      `Revoke the token ${first} of ${user} and disconnect its clients? [y/N] y`,
      first,
    ]);
    expect(await ids()).toEqual([second]);
    expect(await unasked(["token", "revoke", "0123456789abcdef", "--ignore-not-found"])).toBe(0);
    expect(await unasked(["token", "revoke", second.slice(0, -1)])).toBe(4);
    expect(await unasked(["token", "revoke", second, "--yes"])).toBe(0);
    expect(await ids()).toEqual([]);
  });
});

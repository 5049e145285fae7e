import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { ServerView } from "../../src/servers/server.js";
import type { SessionView } from "../../src/sessions/view.js";
import { type ErrorShape, testFleet } from "../fixtures/commands/cli.js";
import { unused } from "../fixtures/sessions/unused.js";

const fleet = testFleet();
const ALICE = ["--user", "alice"];
/** Runs a command with `--json`, which must exit with `exit`, and returns the JSON that it printed. */
async function failed<T extends object>(exit: number, args: readonly string[]) {
  const ran = await fleet.run([...args, "--json"]);
  expect({ code: ran.code, stderr: ran.stderr }, args.join(" ")).toEqual({ code: exit, stderr: "" });
  return ran.json<{ error: ErrorShape } & T>();
}

describe("a prompt that begins with a hyphen", () => {
  it("a prompt that begins with a hyphen is sent as typed: as TEXT, as the value of --prompt and after --", async () => {
    await fleet.create("alice", "hyphens");
    expect(await fleet.send("alice", "hyphens", "- fix the bug")).toBe("[turn 1] - fix the bug");
    expect(await fleet.send("alice", "hyphens", "--help me, please")).toBe("[turn 2] --help me, please");
    expect(await fleet.send("alice", "hyphens", "-1 + 1?")).toBe("[turn 3] -1 + 1?");
    const resume = ["resume", "hyphens", ...ALICE];
    expect(await fleet.ok([...resume, "--prompt", "- and\n- that"])).toBe("[turn 4] - and\n- that\n");
    expect(await fleet.ok([...resume, "--prompt=--json"])).toBe("[turn 5] --json\n");
    expect(await fleet.ok(["send", "hyphens", ...ALICE, "--", "--usr"])).toBe("[turn 6] --usr\n");
    const create = ["create", ...ALICE, "--id", "hyphens-2"];
    expect(await fleet.ok([...create, "--prompt", "- one"])).toBe("hyphens-2\n[turn 1] - one\n");
  });

  it("send reports a flag that does not exist, even though a prompt may begin with a hyphen", async () => {
    const { error } = await failed(2, ["send", "s", "- fix the bug", "--usr", "a"]);
    expect(error.message).toBe('There is no flag "--usr".');
    expect(error.suggestions).toContain("Did you mean --user?");
    const word = (await failed(2, ["send", "s", "-x", ...ALICE])).error;
    expect(word.message).toContain('There is no flag "-x".');
    expect(word.suggestions).toContain('If "-x" is the prompt, put -- before it.');
  });
});

describe("an error as text", () => {
  it("an error ends with its code, and its next steps name the user and the session of the command", async () => {
    await fleet.create("alice", "hers");
    const ran = await fleet.run(["send", "hers", "hi", "--user", "bob"]);
    expect(ran).toMatchObject({ code: 4, stdout: "" });
    expect(ran.stderr).toBe(
      'Error: There is no session "hers" for this user. [FLEET_SESSION_NOT_FOUND]\n' +
        "  Try (lists the sessions of this user): copilotfleet list --user bob\n",
    );
    const { error } = await failed(2, ["lock", "hers", "--user", "bob", "--steal"]);
    expect(error.suggestions).toEqual(['copilotfleet lock hers --user bob --steal --reason "WHY"']);
    expect((await failed(4, ["stop", "--user", "nobody"])).error.suggestions).toContain(
      "copilotfleet spawn --user nobody",
    );
  });

  it("if delete with several ids fails, its error suggests no command for only the first session", async () => {
    const { error } = await failed(4, ["delete", "gone-1", "gone-2", "--user", "alice"]);
    expect(error.suggestions.join()).not.toContain("gone-1");
  });
});

it("create, resume and send read the prompt from standard input when it is -", async () => {
  const create = ["create", ...ALICE, "--id", "piped", "--prompt", "-"];
  expect(await fleet.ok(create, { input: "one\ntwo" })).toBe("piped\n[turn 1] one\ntwo\n");
  const resume = ["resume", "piped", ...ALICE, "--prompt", "-"];
  expect(await fleet.ok(resume, { input: "three" })).toBe("[turn 2] three\n");
  expect(await fleet.ok(["send", "piped", "-", ...ALICE], { input: "four" })).toBe("[turn 3] four\n");
  for (const args of [create, resume]) expect(await fleet.run(args, { input: " \n" })).toMatchObject({ code: 2 });
});

describe("delete", () => {
  it("delete exits with 4 for a session that does not exist, and still deletes the others", async () => {
    await fleet.create("alice", "a-1");
    await fleet.create("alice", "a-2");
    const some = await failed<{ deleted: string[] }>(4, ["delete", "a-1", "nope", "a-2"]);
    expect(some.error).toMatchObject({ code: "FLEET_SESSION_NOT_FOUND", message: 'Session "nope" not found.' });
    expect(some.deleted).toEqual(["a-1", "a-2"]);
    expect((await failed<{ deleted: string[] }>(4, ["delete", "a-1", "nope"])).deleted).toEqual([]);
    expect(await fleet.run(["delete", "nope"])).toMatchObject({
      code: 4,
      stdout: "",
      stderr: expect.stringContaining('"nope" not found'),
    });
  });

  it("delete --ignore-not-found prints only what it deleted, and exits with 0", async () => {
    await fleet.create("alice", "b-1");
    const args = ["delete", "b-1", "nope", "--ignore-not-found"];
    expect(await fleet.ok(args)).toBe("b-1\n");
    expect(await fleet.ok(args)).toBe("");
    expect(await fleet.json(args)).toEqual({ deleted: [] });
  });
});

it("evict and lock --show exit with 4 for a session that does not exist", async () => {
  await fleet.create("alice", "there");
  const evicted = await failed(4, ["evict", "there", "nope"]);
  expect(evicted).toMatchObject({
    error: { code: "FLEET_SESSION_NOT_FOUND", message: 'Session "nope" not found.' },
    evicted: [],
    skipped: [
      { id: "there", reason: "not active" },
      { id: "nope", reason: "not found" },
    ],
  });
  expect((await failed(4, ["lock", "nope", "--show"])).error.message).toBe('Session "nope" not found.');
  expect(await fleet.json(["lock", "there", "--show"])).toEqual({ lease: null });
});

it("after a failed turn, create --prompt reports whether the session still exists, and how to continue", async () => {
  const args = (id: string) => ["create", ...ALICE, "--id", id, "--prompt", "!fail out of order"];
  const kept = await failed<{ session: SessionView }>(7, args("first"));
  expect(kept.error).toMatchObject({ code: "FLEET_TURN_FAILED", message: expect.stringContaining("still exists") });
  expect(kept.error.suggestions).toContain("copilotfleet send first TEXT --user alice");
  expect(kept.session).toMatchObject({ id: "first", owner: "alice" });
  expect(await fleet.send("alice", "first", "again")).toMatch(/again$/);

  const gone = await failed<{ session: SessionView }>(7, [...args("second"), "--ephemeral"]);
  expect(gone.error.message).toContain('ephemeral session "second" was deleted');
  expect(gone.session).toMatchObject({ id: "second", state: "gone" });
  await failed(4, ["delete", "second"]);

  const taken = await failed(5, args("first"));
  expect(taken).toMatchObject({ error: { code: "FLEET_SESSION_EXISTS" }, session: null });
  expect(taken.error.message).toContain("No session was created");
});

describe("a server", () => {
  it("spawn --cwd is a conflict when the user's server runs in another folder", async () => {
    const [one, two] = [join(fleet.folder, "one"), join(fleet.folder, "two")];
    for (const folder of [one, two]) mkdirSync(folder, { recursive: true });
    const user = unused("cwd");
    const spawn = (cwd: string) => ["spawn", "--user", user, "--cwd", cwd];
    const { server } = await fleet.json<{ server: ServerView }>(spawn(one));
    const { error } = await failed(5, spawn(two));
    expect(error).toMatchObject({ code: "FLEET_SERVER_CONFLICT", suggestions: [`copilotfleet stop ${server.id}`] });
    expect(error.message).toContain(`in folder "${one}", not in the requested "${two}"`);
    expect(await fleet.json(spawn(`${one}/`))).toMatchObject({ created: false, server: { pid: server.pid } });
    await fleet.ok(["stop", "--user", user]);
    expect(await fleet.json(spawn(two))).toMatchObject({ created: true, server: { cwd: two } });
  });

  it("spawn --count 1 starts the user's own server, and --count 2 starts servers for numbered users", async () => {
    const one = await fleet.json<{ servers: ServerView[] }>(["spawn", "--user", "solo", "--count", "1"]);
    expect(one.servers.map(({ user }) => user)).toEqual(["solo"]);
    const two = await fleet.json<{ servers: ServerView[] }>(["spawn", "--user", "solo", "--count", "2"]);
    expect(two.servers.map(({ user }) => user)).toEqual(["solo-1", "solo-2"]);
  });
});

import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import type { ServerView } from "../../src/servers/server.js";
import type { SessionView } from "../../src/sessions/view.js";
import { type ErrorShape, RAW, TIME, testFleet } from "../fixtures/commands/cli.js";
import { unused } from "../fixtures/sessions/unused.js";

const fleet = testFleet();

const ID = /^alice-[0-9a-f]{12}$/;
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

const RUNNING = {
  id: expect.stringMatching(ID),
  user: "alice",
  isolation: "per-user",
  host: "127.0.0.1",
  port: expect.any(Number),
  url: expect.stringMatching(/^127\.0\.0\.1:\d+$/),
  pid: expect.any(Number),
  state: "ready",
  failure: null,
  home: expect.stringMatching(/^\/.*\/home$/),
  startedAt: TIME,
  activeSessions: 0,
  version: expect.stringMatching(/^\d+\.\d+\.\d+/),
};

const SESSION = {
  id: expect.any(String),
  owner: "alice",
  purpose: null,
  title: null,
  kind: "private",
  members: [],
  persistence: "persistent",
  serverId: expect.stringMatching(ID),
  state: "idle",
  createdAt: TIME,
  lastUsedAt: TIME,
  ttlMs: 30 * 86_400_000,
  expiresAt: TIME,
  sizeBytes: expect.any(Number),
  lease: null,
};

describe("an empty fleet", () => {
  it("ps, list and stop --all report an empty fleet in JSON and in text, and create no state folder", async () => {
    expect(await fleet.json(["ps"])).toEqual({ pool: { state: "open", reason: null, drainedAt: null }, servers: [] });
    expect(await fleet.json(["list"])).toEqual({ sessions: [] });
    expect(await fleet.json(["stop", "--all"])).toEqual({ stopped: [] });
    expect(await fleet.ok(["ps"])).toBe("No servers. Start one: copilotfleet spawn --user USER\n");
    expect(await fleet.ok(["list"])).toBe("No sessions.\n");
    expect(await fleet.ok(["stop", "--all"])).toBe("Nothing to stop.\n");
    expect(existsSync(fleet.root)).toBe(false);
  });
});

describe("servers", () => {
  let server: ServerView;
  beforeAll(async () => {
    const first = await fleet.json<{ server: ServerView; created: boolean }>(["spawn", "--user", "alice"]);
    expect(first).toMatchObject({ server: RUNNING, created: true });
    server = first.server;
  });

  it("spawn for a user whose server runs returns that server, with created set to false", async () => {
    const again = await fleet.json<{ server: ServerView; created: boolean }>(["spawn", "--user", "alice"]);
    expect(again).toMatchObject({ created: false, server: { id: server.id, pid: server.pid, port: server.port } });
    expect(server.port).toBeGreaterThanOrEqual(fleet.ports.from);
    expect(server.port).toBeLessThanOrEqual(fleet.ports.to);
    expect(server.url).toBe(`${server.host}:${server.port}`);
  });

  it("connect prints the URL and the token of a user's server, as JSON and as shell exports", async () => {
    const info = await fleet.json<Record<string, string>>(["connect", "--user", "alice"]);
    expect(info).toEqual({
      url: server.url,
      token: expect.stringMatching(/^[\w-]{43}$/),
      user: "alice",
      serverId: server.id,
    });
    expect(await fleet.ok(["connect", "--user", "alice"])).toBe(
      `export COPILOT_CLI_URL=${info.url}\nexport COPILOT_CONNECTION_TOKEN=${info.token}\n`,
    );
  });

  it("connect suggests spawn when the user's server was stopped and when the user never had one", async () => {
    expect(await fleet.refusal(4, ["connect", "--user", "nobody"])).toMatchObject({
      code: "FLEET_NAME_NOT_FOUND",
      suggestions: expect.arrayContaining([expect.stringContaining("copilotfleet spawn")]),
    });
    await fleet.spawn("gone");
    await fleet.ok(["stop", "--user", "gone"]);
    expect(await fleet.refusal(7, ["connect", "--user", "gone"])).toMatchObject({
      code: "FLEET_SERVER_LOST",
      suggestions: ["copilotfleet spawn --user gone"],
    });
  });

  it("logs prints the last lines of a server that is named by its id or the beginning of its id", async () => {
    const text = readFileSync(server.log, "utf8").replace(/ #[\w-]{16}$/gm, "");
    const lines = text.trimEnd().split("\n");
    expect(await fleet.json(["logs", server.id])).toEqual({ server: server.id, log: server.log, lines });
    expect(lines).toContain(`CLI server listening on port ${server.port}`);
    expect(await fleet.ok(["logs", "alice"])).toBe(text);
    expect(await fleet.ok(["logs", "alice", "-n", "1"])).toBe(`${lines.at(-1)}\n`);
    expect(await fleet.ok(["logs", "alice", "-n", "0"])).toBe("");
    const suggestions = ["copilotfleet ps"];
    expect(await fleet.refusal(4, ["logs", "nobody"])).toMatchObject({ code: "FLEET_NAME_NOT_FOUND", suggestions });
  });

  it("stop reports drained, then already-stopped when it is repeated, and exits with 4 for an unknown server", async () => {
    await fleet.spawn("alice");
    expect(await fleet.json(["stop", "--user", "alice"])).toEqual({
      stopped: [{ id: server.id, outcome: "drained", cut: [] }],
    });
    expect(await fleet.json(["stop", server.id])).toEqual({
      stopped: [{ id: server.id, outcome: "already-stopped", cut: [] }],
    });
    expect(await fleet.ok(["stop", "alice"])).toMatch(/^SERVER +OUTCOME +CUT\nalice-\w+ +already-stopped +-\n$/);
    expect(await fleet.server("alice")).toMatchObject({
      state: "stopped",
      port: null,
      url: null,
      pid: null,
      startedAt: null,
      uptimeMs: null,
      memoryBytes: null,
      activeSessions: 0,
    });
    expect(await fleet.refusal(4, ["stop", "nobody"])).toMatchObject({ code: "FLEET_NAME_NOT_FOUND" });
    expect(await fleet.refusal(4, ["stop", "--user", "nobody"])).toMatchObject({ code: "FLEET_NAME_NOT_FOUND" });
  });

  it("stop accepts the beginnings of several ids, and refuses a beginning that matches several servers", async () => {
    const spawned = await fleet.json<{ servers: ServerView[] }>(["spawn", "--user", "team", "--count", "3"]);
    expect(spawned.servers.map(({ user, state }) => [user, state])).toEqual([
      ["team-1", "ready"],
      ["team-2", "ready"],
      ["team-3", "ready"],
    ]);
    expect(new Set(spawned.servers.map(({ port }) => port)).size).toBe(3);
    const refused = await fleet.refusal(4, ["stop", "team"]);
    for (const { id } of spawned.servers) expect(refused.message).toContain(id);
    const { stopped } = await fleet.json<{ stopped: { outcome: string }[] }>(["stop", "team-1", "team-2"]);
    expect(stopped.map(({ outcome }) => outcome)).toEqual(["drained", "drained"]);
    expect(await fleet.server("team-3")).toMatchObject({ state: "ready" });
  });

  it("spawn --shared starts another server each time, and the server belongs to no user", async () => {
    const first = await fleet.json<{ server: ServerView; created: boolean }>(["spawn", "--shared"]);
    expect(first).toMatchObject({ server: { user: null, isolation: "shared", state: "ready" }, created: true });
    const second = await fleet.json<{ server: ServerView }>(["spawn", "--shared"]);
    expect(second.server.id).not.toBe(first.server.id);
    expect(await fleet.ok(["stop", first.server.id, second.server.id])).toMatch(/drained.*\n.*drained/);
  });
});

describe("sessions", () => {
  it("create makes a random session id, also if there is a purpose", async () => {
    const plain = await fleet.json<{ session: SessionView; reply: null }>(["create", "--user", "alice"]);
    expect(plain).toMatchObject({ session: { ...SESSION, id: expect.stringMatching(UUID) }, reply: null });
    const id = (await fleet.ok(["create", "--user", "alice", "--purpose", "Code Review!"])).trimEnd();
    expect(id).toMatch(UUID);
    const { sessions } = await fleet.json<{ sessions: SessionView[] }>(["list", "--user", "alice"]);
    expect(sessions.map(({ purpose }) => purpose)).toEqual(["Code Review!", null]);
  });

  it("create takes an id, a model, a TTL and a first prompt", async () => {
    const args = [
      "create",
      "--user",
      "alice",
      "--id",
      "A-b_c-1",
      "--model",
      "gpt-4.1",
      "--ttl",
      "90m",
      "--prompt",
      "hi",
    ];
    expect(await fleet.json(args)).toMatchObject({
      session: {
        ...SESSION,
        id: "A-b_c-1",
        title: "hi",
        model: "gpt-4.1",
        ttlMs: 5_400_000,
        sizeBytes: expect.any(Number),
      },
      reply: "[turn 1] hi",
    });
    expect(await fleet.ok(["create", "--user", "alice", "--id", "two", "--prompt", "hi"])).toBe("two\n[turn 1] hi\n");
  });

  it("list shows the most recently used session first, and filters by user and state", async () => {
    const { sessions } = await fleet.json<{ sessions: SessionView[] }>(["list"]);
    expect(sessions[0]).toMatchObject({ ...SESSION, id: "two", title: "hi" });
    expect(sessions[0]?.sizeBytes).toBeGreaterThan(100);
    expect(sessions).toHaveLength(4);
    const used = sessions.map(({ lastUsedAt }) => lastUsedAt);
    expect(used).toEqual([...used].sort().reverse());
    expect(await fleet.json(["list", "--user", "nobody"])).toEqual({ sessions: [] });
    expect(await fleet.json(["list", "--state", "active"])).toEqual({ sessions: [] });
    expect(await fleet.json(["list", "--state", "idle"])).toEqual({ sessions });
  });

  it("delete removes several sessions at once, from the list and from disk", async () => {
    const ids = [unused("a"), unused("b")];
    for (const id of ids) await fleet.create("alice", id);
    expect(await fleet.json(["delete", ...ids])).toEqual({ deleted: ids });
    const { sessions } = await fleet.json<{ sessions: SessionView[] }>(["list"]);
    const { home } = await fleet.server("alice");
    for (const id of ids) {
      expect(sessions.map((session) => session.id)).not.toContain(id);
      expect(existsSync(`${home}/session-state/${id}`)).toBe(false);
    }
    expect(await fleet.refusal(4, ["resume", ...ids.slice(0, 1), "--user", "alice"])).toMatchObject({
      code: "FLEET_SESSION_NOT_FOUND",
    });
  });
});

describe("doctor and smoke", () => {
  it("doctor lists all its checks in JSON and in text, and none of them fails", async () => {
    const shown = await fleet.json<{ ok: boolean; checks: { name: string }[] }>(["doctor"]);
    expect(shown.ok).toBe(true);
    expect(shown.checks.map(({ name }) => name)).toEqual([
      "node",
      "code",
      "configuration",
      "environment",
      "isolation",
      "sandbox",
      "limits",
      "model",
      "runtime",
      "state folder",
      "permissions",
      "disk space",
      "store",
      "damage",
      "registry",
      "sessions",
      "purges",
      "servers",
      "sandboxes",
      "stray processes",
      "pool",
      "serve",
      "events",
      "tokens",
      "ports",
    ]);
    // The results of these checks depend on the machine and on earlier tests of this file, so do not check them here.
    const others = ["node", "disk space", "sandbox", "store", "servers", "serve", "tokens"];
    for (const check of shown.checks.filter(({ name }) => !others.includes(name))) {
      const { name } = check;
      const detail = expect.any(String);
      expect(check).toEqual({ name, ok: true, level: "ok", detail, items: [], fix: null, fixed: false });
    }
    const text = await fleet.ok(["doctor"]);
    // The indented lines below a warning list what it found, and its fix.
    const [summary, empty, ...lines] = text
      .trimEnd()
      .split("\n")
      .filter((line) => !line.startsWith(" "))
      .toReversed();
    expect(lines).toHaveLength(25);
    for (const line of lines) expect(line).toMatch(/^(ok {5}|WARN {3}|SKIP {3})\S/);
    expect([summary, empty]).toEqual([expect.stringMatching(/^25 checks: \d+ ok, /), ""]);
  });

  it("smoke passes all its steps, from spawn to stop", async () => {
    const shown = await fleet.json<{ ok: boolean; steps: { name: string }[] }>(["smoke"]);
    expect(shown.ok).toBe(true);
    expect(shown.steps.map(({ name }) => name)).toEqual([
      "spawn",
      "create",
      "send",
      "resume",
      "ownership",
      "crash",
      "supervise",
      "evict",
      "lock",
      "list",
      "delete",
      "gc",
      "stop",
    ]);
    for (const step of shown.steps) expect(step).toMatchObject({ ok: true, ms: expect.any(Number) });
  });

  it("smoke reports spawn as its failed step if COPILOT_CLI_PATH names a program that is not the runtime", async () => {
    const ran = await fleet.run(["smoke", "--json"], { env: { COPILOT_CLI_PATH: "/bin/false" } });
    expect(ran).toMatchObject({ code: 1, stderr: "" });
    expect(ran.json()).toMatchObject({ ok: false, steps: [{ name: "spawn", ok: false }] });
  });
});

describe("output", () => {
  it("output in a pipe has no escape codes, in results and in errors, with and without NO_COLOR", async () => {
    for (const args of [["ps"], ["list"], ["doctor"], ["--help"], ["spwan"], ["stop", "nobody"]]) {
      for (const env of [{}, { NO_COLOR: "1", FORCE_COLOR: undefined }]) {
        const { stdout, stderr } = await fleet.run(args, { env });
        expect(stdout + stderr, args.join(" ")).not.toMatch(RAW);
      }
    }
  });

  it("explain describes an error code, lists all codes by default, and suggests codes for other words", async () => {
    const text = await fleet.ok(["explain", "FLEET_SESSION_LOCKED"]);
    expect(text).toMatch(/^FLEET_SESSION_LOCKED: Somebody else holds the lease/);
    expect(text).toContain("copilotfleet lock SESSION --show");
    expect(text).toContain("Exit code 5, HTTP status 409. Worth another try: yes");
    expect(await fleet.json(["explain", "fleet_state_lost"])).toEqual({
      code: "FLEET_STATE_LOST",
      exit: 7,
      httpStatus: 503,
      retryable: false,
      title: "Redis lost the fleet's data.",
      data: expect.stringContaining("The histories are on the hosts' disks"),
      causes: expect.arrayContaining([expect.any(String)]),
      fixes: expect.arrayContaining([expect.any(String)]),
    });
    expect(await fleet.json(["explain", "state_lost"])).toMatchObject({ code: "FLEET_STATE_LOST" });
    const all = await fleet.ok(["explain"]);
    expect(all).toMatch(
      /^A conflict \(exit code 5\):\n( {2}FLEET_\w+ +\S.*\n)* {2}FLEET_SESSION_LOCKED +Somebody else/m,
    );
    const { groups } = await fleet.json<{ groups: { exit: number; errors: { code: string }[] }[] }>(["explain"]);
    expect(groups.map(({ exit }) => exit)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    const codes = groups.flatMap(({ errors }) => errors.map(({ code }) => code));
    expect(codes).toEqual(expect.arrayContaining(["FLEET_INTERNAL", "FLEET_TURN_CUT"]));
    for (const code of codes) expect(all).toContain(`  ${code} `);
    for (const [word, near] of [
      ["FLEET_SESION_LOCKED", ["FLEET_SESSION_LOCKED"]],
      ["draining", ["FLEET_POOL_DRAINING"]],
    ] as const) {
      const { message, suggestions } = await fleet.refusal(2, ["explain", word]);
      expect(message).toBe(`"${word}" is not an error code.`);
      expect(suggestions).toEqual([...near.map((code) => `copilotfleet explain ${code}`), "copilotfleet explain"]);
    }
  });

  it("if send could only wait for ever, because its input neither ends nor keeps Node.js alive, it reports a bug", async () => {
    // This standard input never ends, but does not keep the process alive.
    const script = `import { Readable } from "node:stream";
      Object.defineProperty(process, "stdin", { value: new Readable({ read() {} }) });`;
    const env = { NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(script)}` };
    expect(await fleet.refusal(1, ["send", "any", "-", "--user", "alice"], { env })).toMatchObject({
      code: "FLEET_INTERNAL",
      message: expect.stringContaining("waits for something that never happens"),
    });
  });
});

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
    expect(error.suggestions).toEqual(["Add --reason, or leave out --steal.", "copilotfleet lock --help"]);
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

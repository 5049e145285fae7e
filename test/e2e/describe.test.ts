import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it, onTestFinished } from "vitest";
import type { ServerDescription, SessionDescription, UserDescription } from "../../src/hosts/overview.js";
import type { IssuedToken } from "../../src/identity/tokens.js";
import type { ServerView } from "../../src/servers/server.js";
import { openStore } from "../../src/store/store.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { eventually } from "../fixtures/eventually.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";

const fleet = testFleet();
let server: ServerView;
let issued: IssuedToken;

beforeAll(async () => {
  await fleet.ok(["create", "--user", "alice", "--id", "notes", "--purpose", "plan", "--prompt", "hello"]);
  await fleet.ok(["create", "--user", "alice", "--id", "team", "--collaborative", "--member", "bob", "--ttl", "2h"]);
  issued = await fleet.json<IssuedToken>(["token", "issue", "--user", "alice", "--ttl", "30d"]);
  server = await fleet.server("alice");
});

describe("describe server", () => {
  it("describe shows the record, the sessions and the end of the log of a running server", async () => {
    const described = await fleet.json<ServerDescription>(["describe", server.id]);
    expect(described).toMatchObject({
      kind: "server",
      server: { id: server.id, user: "alice", state: "ready", pid: server.pid, home: server.home, sessions: 2 },
      record: { desired: "running", lastPort: server.port, gitHubToken: null, isBeingReplaced: false },
      logLines: expect.arrayContaining([`CLI server listening on port ${server.port}`]),
    });
    expect(described.sessions.map(({ id }) => id).toSorted()).toEqual(["notes", "team"]);
    const text = await fleet.ok(["describe", server.id]);
    for (const line of [
      `Server ${server.id}`,
      "  User:            alice",
      "  State:           ready",
      `  URL:             ${server.url}`,
      `  Home:            ${server.home}`,
      `  Log:             ${server.log}`,
      "Sessions (0 in memory):",
      `CLI server listening on port ${server.port}`,
      `  copilotfleet logs ${server.id} -f`,
    ])
      expect(text.split("\n")).toContain(line);
    expect(text).toMatch(/^notes +alice +idle /m);
  });

  it("describe shows why a server does not run, and the command that starts it again", async () => {
    const { pid } = await fleet.spawn("mortal");
    process.kill(pid ?? 0, "SIGKILL");
    await eventually("the end of the server", async () => (await fleet.server("mortal")).state === "failed");
    const { id, failure } = await fleet.server("mortal");
    expect(await fleet.json(["describe", id])).toMatchObject({ server: { state: "failed", pid: null, failure } });
    const text = await fleet.ok(["describe", "server/mortal"]);
    expect(text).toMatch(/^ {2}State: +failed\n {2}Reason: +\S/m);
    expect(text).toMatch(new RegExp(`\nNext:\n {2}copilotfleet spawn --user mortal\n {2}copilotfleet logs ${id}\n$`));
  });

  it("describe prints neither the connection token of a server nor the command that gets the server's GitHub token", async () => {
    const { token } = await fleet.json<{ token: string }>(["connect", "--user", "alice"]);
    const stopped = { state: "stopped", process: null, port: null, startedAt: null, user: "secretive" } as const;
    await openStore("file", fleet.root).registry.update(({ servers }) => {
      servers["secretive-1"] = serverRecord("secretive-1", {
        ...stopped,
        token: { from: "command", command: "echo s3cret" } as { from: "command" },
      });
    });
    for (const name of [server.id, "alice", "notes", "secretive-1", "secretive"]) {
      const both = (await fleet.ok(["describe", name, "--json"])) + (await fleet.ok(["describe", name]));
      expect(both).not.toContain(token);
      expect(both).not.toContain(issued.token);
      expect(both).not.toContain("s3cret");
    }
    expect(await fleet.ok(["describe", "secretive-1"])).toMatch(/^ {2}GitHub token: +from a command$/m);
  });
});

describe("describe session", () => {
  it("describe shows the owner, the folder, the turns and the expiry of a session", async () => {
    const described = await fleet.json<SessionDescription>(["describe", "notes"]);
    expect(described).toMatchObject({
      kind: "session",
      session: { id: "notes", owner: "alice", purpose: "plan", model: null, state: "idle", lease: null },
      effectiveModel: "echo",
      turns: 1,
      folder: join(server.home, "session-state", "notes"),
      server: { id: server.id, state: "ready" },
    });
    const { lastUsedAt, ttlMs } = described.session;
    expect(Date.parse(described.expiresAt ?? "")).toBe(Date.parse(lastUsedAt) + (ttlMs ?? 0));
    const text = await fleet.ok(["describe", "session/notes"]);
    expect(text).toMatch(/^ {2}Model: +echo \(provider\.type\)$/m);
    expect(text).toMatch(/^ {2}Expires: +\S+ \(in 30d\), if nobody uses it$/m);
    expect(text).toContain("\nNext:\n  copilotfleet resume notes --user alice\n");
  });

  it("describe --title changes the title of a session, which list shows, and refuses the title of a server", async () => {
    const text = await fleet.ok(["describe", "notes", "--title", "Notes of \u05d0"]);
    expect(text).toMatch(/^ {2}Title: +Notes of \u05d0$/m);
    expect(await fleet.ok(["list", "--user", "alice"])).toMatch(/ TITLE\n(?:.*\n)*notes .* Notes of \u05d0\n/);
    const refused = await fleet.run(["describe", server.id, "--title", "x"]);
    expect(refused.code).toBe(2);
    expect(refused.stderr).toContain(`--title is for sessions, and "${server.id}" is a server.`);
    const wrong = await fleet.run(["describe", "notes", "--title", "a\nb"]);
    expect(wrong.code).toBe(2);
    expect(wrong.stderr).toContain('--title is "a\\u{a}b", which contains "\\u{a}". Allowed: one line of at most 80');
  });

  it("describe shows the members of a session and the holder of its lease", async () => {
    onTestFinished(() => rmSync(join(fleet.root, "leases"), { recursive: true, force: true }));
    await fleet.ok(["lock", "team", "--user", "bob", "--ttl", "300s"]);
    const text = await fleet.ok(["describe", "team"]);
    expect(text).toMatch(/^ {2}Kind: +collaborative, persistent\n {2}Members: +bob$/m);
    expect(text).toMatch(/^ {2}Lease: +held by bob, ends in (5m|4m|299s)$/m);
    expect(text).toContain("  copilotfleet lock team --show\n");
  });

  it("describe finds a session that a client created without the fleet", async () => {
    mkdirSync(join(server.home, "session-state", "direct"), { recursive: true });
    expect(await fleet.json(["describe", "direct"])).toMatchObject({
      kind: "session",
      session: { id: "direct", owner: "alice" },
      turns: null,
      server: { id: server.id },
    });
  });

  it("describe escapes control characters in the purpose of a session", async () => {
    const purpose = "a\x1b[31mb";
    await openStore("file", fleet.root).sessions.create(sessionRecord("red", { owner: "alice", purpose }));
    expect(await fleet.ok(["describe", "red"])).toContain("a\\u{1b}[31mb");
    expect(await fleet.json(["describe", "red"])).toMatchObject({ session: { purpose }, server: null, folder: null });
  });
});

describe("describe user", () => {
  it("describe shows the server, the sessions and the tokens of a user", async () => {
    const described = await fleet.json<UserDescription>(["describe", "alice"]);
    expect(described).toMatchObject({
      kind: "user",
      user: "alice",
      servers: [{ id: server.id, state: "ready" }],
      tokens: [{ id: issued.id, expiresAt: issued.expiresAt, expired: false }],
    });
    expect(described.sessions.map(({ id }) => id)).toEqual(expect.arrayContaining(["notes", "team"]));
    const text = await fleet.ok(["describe", "user/alice"]);
    expect(text).toMatch(new RegExp(`^Servers:\nSERVER .*\n${server.id} `, "m"));
    expect(text).toMatch(/^Sessions:\nSESSION .*\n/m);
    expect(text).toMatch(
      new RegExp(`^Tokens:\nTOKEN +AGE +EXPIRES +SCOPES +LABEL\n${issued.id} +\\d+[sm] +in 30d +use +-$`, "m"),
    );
    expect(text).toContain(`  copilotfleet describe server/${server.id}\n`);
  });

  it("describe shows a user who is only a member of a session", async () => {
    expect(await fleet.json(["describe", "bob"])).toMatchObject({
      kind: "user",
      servers: [],
      sessions: [{ id: "team" }],
    });
    expect(await fleet.ok(["describe", "bob"])).toMatch(/^ {2}Sessions: +0 own, 1 of others$/m);
  });
});

describe("the name that describe takes", () => {
  it("describe refuses a name that is both a user and a session, and suggests a command for each", async () => {
    await fleet.create("alice", "alice");
    const suggestions = ["copilotfleet describe session/alice", "copilotfleet describe user/alice"];
    expect(await fleet.refusal(2, ["describe", "alice"])).toMatchObject({
      message: '"alice" is the id of a session and of a user.',
      suggestions: expect.arrayContaining(suggestions),
    });
    expect(await fleet.json(["describe", "session/alice"])).toMatchObject({ kind: "session" });
    expect(await fleet.json(["describe", "user/alice"])).toMatchObject({ kind: "user" });
    expect(await fleet.json(["describe", "server/alice"])).toMatchObject({ kind: "server", server: { id: server.id } });
    await fleet.ok(["delete", "alice"]);
  });

  it("describe accepts the beginning of a server's id, and inspect is an alias of describe", async () => {
    const prefix = server.id.slice(0, 9);
    expect(await fleet.json(["describe", prefix])).toMatchObject({ kind: "server", server: { id: server.id } });
    expect(await fleet.ok(["inspect", "bob"])).toMatch(/^User bob\n/);
  });

  it.each([
    ["alcie", "FLEET_NAME_NOT_FOUND", 'There is no server, session or user "alcie".', "user/alice"],
    ["session/nites", "FLEET_SESSION_NOT_FOUND", 'There is no session "nites".', "session/notes"],
    ["server/secretive-2", "FLEET_NAME_NOT_FOUND", 'There is no server "secretive-2".', "server/secretive-1"],
    ["user/bop", "FLEET_NAME_NOT_FOUND", 'There is no user "bop".', "user/bob"],
  ])(
    "describe exits with 4 for the unknown name %s, and suggests the nearest known name",
    async (name, code, message, near) => {
      const error = await fleet.refusal(4, ["describe", name]);
      expect(error).toMatchObject({ code, message });
      expect(error.suggestions[0]).toBe(`copilotfleet describe ${near}`);
    },
  );

  it("describe exits with 4 for a name that resembles no known name, and suggests ps and list", async () => {
    for (const name of ["zzzzzzzz", "no such thing", "user/", "server/", "session/a b"]) {
      const error = await fleet.refusal(4, ["describe", name]);
      expect(error.suggestions).toEqual(["copilotfleet ps", "copilotfleet list"]);
    }
  });
});

import { readdirSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import type { ServerView } from "../../src/servers/server.js";
import type { SessionView } from "../../src/sessions/view.js";
import { testFleet } from "../fixtures/commands/cli.js";
import type { Ran } from "../fixtures/commands/command.js";
import { unused } from "../fixtures/sessions/unused.js";

const fleet = testFleet();

/** The exit code and output of a command, with the session id replaced with `ID`. */
function without(id: string, { code, stdout, stderr }: Ran) {
  return { code, stdout: stdout.replaceAll(id, "ID"), stderr: stderr.replaceAll(id, "ID") };
}

beforeAll(async () => {
  await fleet.create("mary-jane", "hers");
  await fleet.send("mary-jane", "hers", "secret");
});

describe("somebody else's session", () => {
  it.each([
    ["resume", (id: string) => ["resume", id]],
    ["resume with a prompt", (id: string) => ["resume", id, "--prompt", "hi"]],
    ["send", (id: string) => ["send", id, "hi"]],
    ["resume --json", (id: string) => ["resume", id, "--json"]],
    ["send --json", (id: string) => ["send", id, "hi", "--json"]],
  ])("%s gives exactly the same answer for another user's session as for one that does not exist", async (_, args) => {
    const [foreign, unknown] = await Promise.all([
      fleet.run([...args("hers"), "--user", "mary"]),
      fleet.run([...args("nobodys"), "--user", "mary"]),
    ]);
    expect(foreign).toMatchObject({ code: 4 });
    expect(without("hers", foreign)).toEqual(without("nobodys", unknown));
    expect(foreign.stdout + foreign.stderr).toMatch(/There is no session .{0,2}"hers/);
  });

  it("a request for another user's session starts no server", async () => {
    const { servers } = await fleet.json<{ servers: ServerView[] }>(["ps"]);
    expect(servers.map(({ user }) => user)).toEqual(["mary-jane"]);
  });

  it("list shows a session to its owner, but not to another user", async () => {
    expect(await fleet.json(["list", "--user", "mary"])).toEqual({ sessions: [] });
    const { sessions } = await fleet.json<{ sessions: SessionView[] }>(["list", "--user", "mary-jane"]);
    expect(sessions.map(({ id, owner }) => [id, owner])).toEqual([["hers", "mary-jane"]]);
  });

  it("delete answers for another user's session as for an unknown one, and leaves the session intact", async () => {
    const id = unused("intact");
    await fleet.ok(["create", "--user", "mary-jane", "--id", id, "--prompt", "secret"]);
    const [foreign, unknown] = await Promise.all([
      fleet.run(["delete", id, "--user", "mary"]),
      fleet.run(["delete", "nobodys", "--user", "mary"]),
    ]);
    expect(foreign).toMatchObject({ code: 4, stdout: "" });
    expect(without(id, foreign)).toEqual(without("nobodys", unknown));
    expect(await fleet.send("mary-jane", id, "still")).toBe("[turn 2] still");
  });
});

describe("create --id", () => {
  it("create --id refuses an existing id with exit code 5, and does not tell others that it is the id of a session", async () => {
    const id = unused("taken");
    await fleet.ok(["create", "--user", "mary-jane", "--id", id, "--prompt", "secret"]);
    const args = (user: string) => ["create", "--user", user, "--id", id];
    const [own, foreign] = await Promise.all([fleet.run(args("mary-jane")), fleet.run(args("mary"))]);
    expect(own).toMatchObject({ code: 5, stdout: "", stderr: expect.stringContaining(`"${id}"`) });
    // Only the owner is advised to use the session. Nothing else may differ.
    const advice = `  Try: copilotfleet resume ${id} --user mary-jane\n`;
    expect(own.stderr).toContain(advice);
    const asForeign = own.stderr.replace(advice, "");
    expect({ ...foreign, json: undefined, ms: 0 }).toEqual({ ...own, stderr: asForeign, json: undefined, ms: 0 });
    expect(await fleet.send("mary-jane", id, "intact")).toBe("[turn 2] intact");
  });

  it("if three users run create with the same --id at once, one gets the session, and the others are refused", async () => {
    const users = ["one", "two", "three"];
    const ran = await Promise.all(
      users.map((user) => fleet.start(["create", "--user", user, "--id", "contested"]).done),
    );
    expect(ran.map(({ code }) => code).sort()).toEqual([0, 5, 5]);
    const winner = users[ran.findIndex(({ code }) => code === 0)] ?? "";
    expect(await fleet.send(winner, "contested", "mine")).toBe("[turn 1] mine");
  });
});

describe("names that look alike", () => {
  it("a session whose id begins with another user's name belongs to the user who created it", async () => {
    await fleet.create("jane", "mary-notes");
    expect(await fleet.send("jane", "mary-notes", "mine")).toBe("[turn 1] mine");
    expect(await fleet.refusal(4, ["resume", "mary-notes", "--user", "mary"])).toMatchObject({
      code: "FLEET_SESSION_NOT_FOUND",
    });
    await fleet.create("a", "a-b-1");
    expect(await fleet.refusal(4, ["resume", "a-b-1", "--user", "a-b"])).toMatchObject({
      code: "FLEET_SESSION_NOT_FOUND",
    });
  });

  it("users whose ids differ only in case or in characters that folder names omit have separate folders", async () => {
    const users = ["dana", "Dana", "DANA", "da.na", "da-na", "da+na", "дана"];
    const servers = await Promise.all(users.map((user) => fleet.spawn(user)));
    const homes = new Set(servers.map(({ home }) => home.toLowerCase()));
    expect(homes.size).toBe(users.length);
    expect(new Set(servers.map(({ pid }) => pid)).size).toBe(users.length);
    const folders = readdirSync(join(fleet.root, "servers")).map((name) => name.toLowerCase());
    expect(new Set(folders).size).toBe(folders.length);
    await fleet.create("dana", "case");
    expect(await fleet.refusal(4, ["resume", "case", "--user", "Dana"])).toMatchObject({
      code: "FLEET_SESSION_NOT_FOUND",
    });
    await fleet.ok(["stop", ...servers.map(({ id }) => id)]);
  });

  it("two Unicode forms of a user id mean the same user", async () => {
    const composed = "zo\u00eb";
    const decomposed = "zoe\u0308";
    expect(composed).not.toBe(decomposed);
    const first = await fleet.spawn(composed);
    expect(first.user).toBe(composed);
    expect(await fleet.json(["spawn", "--user", decomposed])).toMatchObject({
      created: false,
      server: { pid: first.pid },
    });
    await fleet.create(decomposed, "unicode");
    expect(await fleet.send(composed, "unicode", "hi")).toBe("[turn 1] hi");
  });
});

describe("a session that a client made without the fleet", () => {
  it("a session that a client made without the fleet belongs only to the user whose server it is on", async () => {
    // This client creates the session directly on mary-jane's server, so the fleet has no record of the session.
    const { Fleet } = await import("../../src/index.js");
    await using library = await Fleet.open({ env: fleet.env, cwd: fleet.folder });
    const client = await library.clients.connect("mary-jane");
    const session = await client.createSession({ sessionId: "wild", onPermissionRequest: () => ({ kind: "reject" }) });
    const { sessions } = await fleet.json<{ sessions: SessionView[] }>(["list", "--user", "mary-jane"]);
    expect(sessions).toContainEqual(expect.objectContaining({ id: "wild", owner: "mary-jane", state: "active" }));
    await session.disconnect();
    expect(await fleet.refusal(4, ["resume", "wild", "--user", "mary"])).toMatchObject({
      code: "FLEET_SESSION_NOT_FOUND",
    });
    expect(await fleet.send("mary-jane", "wild", "hi")).toBe("[turn 1] hi");
    expect(await fleet.ok(["delete", "wild", "--user", "mary-jane"])).toBe("wild\n");
  });
});

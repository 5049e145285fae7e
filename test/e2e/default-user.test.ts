import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import type { ServerView } from "../../src/servers/server.js";
import type { GcResult } from "../../src/sessions/gc/collect.js";
import type { SessionView } from "../../src/sessions/view.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { runCommand } from "../fixtures/commands/command.js";
import { unused } from "../fixtures/sessions/unused.js";

const fleet = testFleet();
const ALICE = { env: { COPILOTFLEET_USER: "alice" } };

beforeAll(async () => {
  await fleet.create("alice", "hers");
  await fleet.create("bob", "his");
});

describe("the default user", () => {
  it("each command that needs a user uses the default user (COPILOTFLEET_USER) if --user is missing", async () => {
    const id = unused("new");
    const created = await fleet.json<{ session: SessionView }>(["create", "--id", id], ALICE);
    expect(created.session.owner).toBe("alice");
    expect(await fleet.ok(["send", id, "hi"], ALICE)).toBe("[turn 1] hi\n");
    expect(await fleet.ok(["resume", id, "--prompt", "on"], ALICE)).toBe("[turn 2] on\n");
    expect((await fleet.run(["chat"], ALICE)).stderr).toContain("copilotfleet send SESSION TEXT --user alice");
    expect(await fleet.ok(["transcript", id], ALICE)).toContain("[turn 2] on");
    expect(await fleet.json(["connect"], ALICE)).toMatchObject({ user: "alice" });
    expect(await fleet.json(["spawn"], ALICE)).toMatchObject({ server: { user: "alice" }, created: false });
    expect(await fleet.json(["route"], ALICE)).toMatchObject({ user: "alice" });
    expect(await fleet.json(["token", "issue", "--ttl", "1h"], ALICE)).toMatchObject({ user: "alice" });
    const { lease } = await fleet.json<{ lease: { holder: string; token: string } }>(["lock", id], ALICE);
    expect(lease.holder).toBe("alice");
    await fleet.ok(["unlock", id, "--token", lease.token]);
  });

  it("COPILOTFLEET_USER sets the default user even if the environment has no other variable of the configuration", async () => {
    const alone = { PATH: process.env.PATH, HOME: fleet.env.HOME, COPILOTFLEET_HOME: fleet.root };
    const place = (user: string) => ({ env: { ...alone, COPILOTFLEET_USER: user }, cwd: fleet.folder });
    const ran = await runCommand(["lock", "nosuch", "--json"], place("alice"));
    expect(JSON.parse(ran.stdout).error).toMatchObject({ code: "FLEET_SESSION_NOT_FOUND" });
    const refused = await runCommand(["lock", "nosuch", "--json"], place("a b"));
    expect(JSON.parse(refused.stdout).error).toMatchObject({ code: "FLEET_CONFIG_INVALID" });
  });

  it("--user and -u win over the default user", async () => {
    const id = unused("new");
    await fleet.create("bob", id);
    expect(await fleet.ok(["send", id, "hi", "-u", "bob"], ALICE)).toBe("[turn 1] hi\n");
    expect(await fleet.json(["route", "--user=bob"], ALICE)).toMatchObject({ user: "bob" });
  });

  it("the default user does not restrict what a command shows", async () => {
    const { sessions } = await fleet.json<{ sessions: SessionView[] }>(["list"], ALICE);
    expect(sessions.map(({ owner }) => owner)).toEqual(expect.arrayContaining(["alice", "bob"]));
    const { servers } = await fleet.json<{ servers: ServerView[] }>(["ps"], ALICE);
    expect(servers.map(({ user }) => user)).toEqual(["alice", "bob"]);
    await fleet.ok(["token", "issue", "-u", "bob"]);
    expect((await fleet.json<{ tokens: { user: string }[] }>(["token", "list"], ALICE)).tokens).toContainEqual(
      expect.objectContaining({ user: "bob" }),
    );
    expect(await fleet.json(["lock", "his", "--show"], ALICE)).toEqual({ lease: null });
  });

  it("the default user is not a filter for what a command stops, revokes, deletes or unloads", async () => {
    for (const args of [["stop"], ["restart"], ["logs"], ["token", "revoke"], ["evict"]])
      expect((await fleet.refusal(2, args, ALICE)).message, args.join(" ")).toMatch(
        /^(?:SERVER|SESSION|ID)\b.* missing\./,
      );
    await fleet.create("bob", "over");
    expect(await fleet.ok(["delete", "over"], ALICE)).toBe("over\n");
    const { deleted, skipped } = await fleet.json<GcResult>(["gc", "--ttl", "1s", "--dry-run"], ALICE);
    const examined = [...deleted, ...skipped].map(({ id }) => id);
    expect(examined).toEqual(expect.arrayContaining(["hers", "his"]));
    expect((await fleet.refusal(2, ["spawn", "--count", "2"], ALICE)).message).toBe("--count needs --user.");
    expect(
      await fleet.json(["spawn", "--shared"], { env: { ...ALICE.env, COPILOTFLEET_ISOLATION: "shared" } }),
    ).toMatchObject({ server: { user: null } });
  });

  it("a command that needs a user but has none suggests COPILOTFLEET_USER and --help", async () => {
    for (const args of [["create"], ["send", "hers", "hi"], ["lock", "hers"], ["token", "issue"], ["connect"]]) {
      const { message, suggestions } = await fleet.refusal(2, args);
      expect(message).toBe("--user is missing.");
      const words = args[0] === "token" ? args : args.slice(0, 1);
      expect(suggestions).toEqual(["export COPILOTFLEET_USER=USER", `copilotfleet ${words.join(" ")} --help`]);
    }
  });

  it("a default user that is not a user id is refused, and the error names the variable or the key in its file", async () => {
    const { code, message } = await fleet.refusal(3, ["create"], { env: { COPILOTFLEET_USER: "a b" } });
    expect(code).toBe("FLEET_CONFIG_INVALID");
    expect(message).toMatch(/^COPILOTFLEET_USER \(user\) is "a b", which contains a space\. Allowed: an id of letters/);
    const file = join(fleet.folder, "user.json");
    writeFileSync(file, '{"user": "-x"}');
    const wrong = await fleet.refusal(3, ["create", "--config", file]);
    expect(wrong.message).toContain(
      `"user" in ${file}, line 1, is "-x", which starts with "-". Allowed: an id of letters`,
    );
  });

  it("the default user comes from the file of --config, and from a project's file only if that file is trusted", async () => {
    const file = join(fleet.folder, "bob.json");
    writeFileSync(file, '{"user": "bob"}');
    expect(await fleet.json(["route", "--config", file])).toMatchObject({ user: "bob" });
    const cwd = join(fleet.folder, unused("project"));
    mkdirSync(cwd);
    const project = join(cwd, ".copilotfleet.json");
    writeFileSync(project, '{"user": "bob"}', { mode: 0o644 });
    const { code, message } = await fleet.refusal(3, ["route"], { cwd });
    expect(code).toBe("FLEET_CONFIG_UNTRUSTED");
    expect(message).toContain(`user in ${project} counts only when you trust this file.`);
    await fleet.ok(["trust", project]);
    expect(await fleet.json(["route"], { cwd })).toMatchObject({ user: "bob" });
  });
});

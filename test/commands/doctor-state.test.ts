import { chmodSync, chownSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import type { Check } from "../../src/fleet/doctor/checks.js";
import type { DoctorResult } from "../../src/fleet/doctor/doctor.js";
import { nodeIsSupported } from "../../src/fleet/doctor/settings.js";
import { openStore } from "../../src/store/store.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { killed, sleeper } from "../fixtures/processes.js";
import { straceProblem } from "../fixtures/store/store-strace.js";

const fleet = testFleet();

/** Runs `doctor --quick`, and returns its exit code and one of its checks. */
async function check(name: string, { args = [] as string[], under = undefined as string[] | undefined } = {}) {
  const ran = await fleet.run(["doctor", "--quick", ...args, "--json"], under === undefined ? {} : { under });
  const found = ran.json<DoctorResult>().checks.find((each) => each.name === name);
  return { code: ran.code, check: found as Check };
}

const fixed = async (name: string) => await check(name, { args: ["--fix"] });

describe("node", () => {
  it("doctor warns about a version of Node.js only after the end of life of that version", () => {
    expect(nodeIsSupported("20.20.2", new Date("2026-04-30T12:00:00Z"))).toMatchObject({ level: "ok" });
    expect(nodeIsSupported("20.20.2", new Date("2026-05-01T12:00:00Z"))).toMatchObject({
      level: "warning",
      detail: expect.stringMatching(
        /^Node\.js 20\.20\.2 on linux-\w+; this version has had no security fixes since 2026-04-30$/,
      ),
    });
    expect(nodeIsSupported("22.12.0", new Date("2026-05-01T12:00:00Z"))).toMatchObject({ level: "ok" });
    expect(nodeIsSupported("99.0.0", new Date("2026-05-01T12:00:00Z"))).toMatchObject({ level: "ok" });
  });
});

describe("permissions", () => {
  it("doctor warns when other users may read the state folder, and --fix makes it private again", async () => {
    await fleet.spawn("alice");
    expect((await check("permissions")).check).toMatchObject({ level: "ok" });
    chmodSync(fleet.root, 0o755);
    expect((await check("permissions")).check).toMatchObject({
      level: "warning",
      detail: "other users may read the state folder (mode 0755), which shows the ids of users and sessions",
      fix: `chmod go-rwx ${fleet.root}`,
    });
    expect((await fixed("permissions")).check).toMatchObject({ level: "ok", fixed: true });
    expect(statSync(fleet.root).mode & 0o777).toBe(0o700);
  });

  const isRoot = process.getuid?.() === 0;
  if (!isRoot) console.log("doctor on files of another user: skipped, since only root can make some");
  it.skipIf(!isRoot)("doctor fails when files of the state belong to another user, and names them", async () => {
    const { id } = await fleet.spawn("alice");
    const path = join(fleet.root, "servers", id, "connection-token");
    chownSync(path, 12_345, 0);
    const { code, check: found } = await check("permissions");
    expect({ code, found }).toMatchObject({
      code: 3,
      found: { level: "failed", items: [path], fix: `sudo chown -R 0 ${fleet.root}` },
    });
    chownSync(path, 0, 0);
  });
});

describe("servers and processes", () => {
  it("doctor fails for a dead server that is recorded as running, and only warns about this server after --fix", async () => {
    const { id, pid } = await fleet.spawn("crashed");
    await killed(pid);
    expect(await check("servers")).toMatchObject({
      code: 3,
      check: {
        level: "failed",
        detail: "servers that do not run as recorded: 1",
        items: [`${id}: recorded as running, but not running`],
        fix: "copilotfleet ps",
      },
    });
    expect(await fixed("servers")).toMatchObject({ code: 0, check: { level: "ok", fixed: true } });
    expect(await check("servers")).toMatchObject({
      code: 0,
      check: {
        level: "warning",
        items: [expect.stringMatching(new RegExp(`^${id}: failed: `))],
        fix: `copilotfleet restart ${id}`,
      },
    });
    await fleet.spawn("crashed");
    expect((await check("servers")).check).toMatchObject({ level: "ok", items: [] });
  });

  it("doctor lists a running server that sends with Nagle's delay", async () => {
    const { id } = await fleet.spawn("delayed", {
      env: { COPILOTFLEET_RUNTIME_ENV: "LD_PRELOAD", LD_PRELOAD: "" },
    });
    expect((await check("servers")).check).toMatchObject({
      level: "ok",
      items: [`${id}: sends with Nagle's delay, so the fleet acknowledges each message at once`],
    });
    await fleet.run(["stop", id]);
  });

  it("doctor warns of a running server with a weaker sandbox than it would get now, until the server is restarted", async () => {
    const { id } = await fleet.spawn("weak", { env: { COPILOTFLEET_SANDBOX_MODE: "none" } });
    expect((await check("sandboxes")).check).toMatchObject({
      level: "warning",
      detail: "running servers with a weaker sandbox than they would get now: 1",
      items: [
        expect.stringMatching(
          new RegExp(`^${id}: sandbox none; a restart would also restrict files, processes, signals, system-calls`),
        ),
      ],
      fix: `copilotfleet restart ${id}`,
    });
    await fleet.ok(["restart", id]);
    expect((await check("sandboxes")).check).toMatchObject({ level: "ok", items: [] });
    await fleet.ok(["stop", id]);
  });

  it("doctor fails for a process that has no record, and --fix ends the process", async () => {
    const pid = sleeper({ COPILOTFLEET_OWNER: fleet.root, COPILOTFLEET_LAUNCH_ID: "unknown" });
    expect(await check("stray processes")).toMatchObject({
      code: 3,
      check: {
        level: "failed",
        detail: expect.stringContaining(`pid ${pid}`),
        fix: "Add --fix to end these processes.",
      },
    });
    expect(await fixed("stray processes")).toMatchObject({
      code: 0,
      check: { level: "ok", fixed: true, detail: expect.stringMatching(new RegExp(`^ended .*pid ${pid}$`)) },
    });
    expect((await check("stray processes")).check).toMatchObject({ level: "ok", detail: "none" });
  });
});

describe("sessions", () => {
  it("doctor fails for a session whose history is no longer on disk, and names it", async () => {
    const { home } = await fleet.spawn("alice");
    await fleet.create("alice", "kept");
    await fleet.create("alice", "gone");
    await fleet.send("alice", "kept", "hi");
    await fleet.send("alice", "gone", "hi");
    expect((await check("sessions")).check).toMatchObject({ level: "ok" });
    rmSync(join(home, "session-state", "gone"), { recursive: true });
    expect(await check("sessions")).toMatchObject({
      code: 3,
      check: {
        level: "failed",
        detail: "sessions that cannot be used: 1",
        items: ["gone: its history is no longer on disk"],
      },
    });
    await fleet.ok(["delete", "gone", "kept"]);
    expect((await check("sessions")).check).toMatchObject({ level: "ok" });
  });

  it("doctor warns when sessions were last used in the future, because the clock was set back since then", async () => {
    await fleet.create("alice", "later");
    const store = openStore("file", fleet.root);
    await store.sessions.update("later", (record) => {
      record.lastUsedAt = new Date(Date.now() + 3_600_000).toISOString();
    });
    expect(await check("sessions")).toMatchObject({
      code: 0,
      check: { level: "warning", detail: expect.stringMatching(/clock .* was set back/), items: ["later"] },
    });
    await fleet.ok(["delete", "later"]);
  });
});

describe("tokens", () => {
  it("doctor warns of tokens that are expired, endless or unused, and --fix deletes only expired tokens", async () => {
    const store = openStore("file", fleet.root).tokens;
    onTestFinished(async () => {
      for (const { id } of await store.list()) await store.delete(id);
    });
    expect((await check("tokens")).check).toMatchObject({ level: "ok" });
    const issue = async (user: string, ...ttl: string[]) =>
      JSON.parse((await fleet.run(["token", "issue", "--user", user, ...ttl, "--json"])).stdout) as { id: string };
    const [good, endless] = [await issue("good", "--ttl", "30d"), await issue("endless", "--ttl", "never")];
    const over = await issue("over", "--ttl", "1s");
    await store.delete(over.id);
    await store.create({
      id: over.id,
      user: "over",
      sha256: "0".repeat(64),
      createdAt: "2026-01-01T00:00:00.000Z",
      expiresAt: "2026-01-02T00:00:00.000Z",
    });
    const items = [
      `${over.id} of over: expired at 2026-01-02T00:00:00.000Z`,
      expect.stringMatching(`^${endless.id} of endless: issued at \\S+, never expires$`),
    ];
    const fix =
      "copilotfleet token issue --user endless --ttl 90d  # then give it to the client, and revoke the old one";
    expect((await check("tokens")).check).toMatchObject({
      level: "warning",
      detail: "issued: 3, expired: 1, without an end: 1",
      items,
      fix,
      fixed: false,
    });
    expect((await fixed("tokens")).check).toMatchObject({ level: "warning", items, fix, fixed: true });
    const { tokens } = await fleet.json<{ tokens: { id: string }[] }>(["token", "list"]);
    expect(tokens.map(({ id }) => id).toSorted()).toEqual([good.id, endless.id].toSorted());
    await fleet.ok(["token", "revoke", endless.id]);
    expect((await check("tokens")).check).toMatchObject({ level: "ok", detail: "issued: 1" });
    const old = "2026-01-01T00:00:00.000Z";
    const idle = { user: "idle", sha256: "0".repeat(64), createdAt: old, expiresAt: "2099-01-01T00:00:00.000Z" };
    await store.create({ ...idle, id: "idle1" });
    await store.create({ ...idle, id: "idle2" });
    await store.create({ ...idle, id: "busy" });
    await store.used("idle2", "2026-02-01T00:00:00.000Z");
    await store.used("busy", new Date().toISOString());
    const { check: unused } = await check("tokens");
    expect(unused).toMatchObject({
      level: "warning",
      detail: "issued: 4, expired: 0, without an end: 0, unused for 90 days: 2",
      fix: expect.stringMatching(/^copilotfleet token revoke idle[12]$/),
    });
    expect(unused?.items?.toSorted()).toEqual([
      "idle1 of idle: unused since 2026-01-01T00:00:00.000Z",
      "idle2 of idle: unused since 2026-02-01T00:00:00.000Z",
    ]);
  });
});

describe("store", () => {
  const problem = straceProblem();
  if (problem !== undefined) console.log(`doctor on a slow disk: skipped, since ${problem}`);
  it.skipIf(problem !== undefined)("doctor warns when a write to the state takes long", async () => {
    await fleet.spawn("alice");
    expect((await check("store")).check).toMatchObject({
      detail: expect.stringMatching(/^file: a write takes \S+ ms/),
    });
    const slow = "strace -f -qq -o /dev/null -e trace=fsync -e inject=fsync:delay_enter=600000".split(" ");
    expect((await check("store", { under: slow })).check).toMatchObject({
      level: "warning",
      detail: expect.stringMatching(/^file: a write takes \d{3,}\.\d ms, which makes every command slow$/),
      fix: `df -h ${fleet.root}`,
    });
  });
});

describe("registry", () => {
  it("doctor --fix rebuilds a damaged registry, and the running servers keep their processes", async () => {
    const users = ["rebuilt", "Юлия@example.org"];
    for (const user of users) await fleet.ok(["create", "--user", user, "--id", `of-${user.length}`, "--prompt", "hi"]);
    const look = async () =>
      (await fleet.ps())
        .filter(({ user }) => users.includes(user ?? ""))
        .map(({ id, user, pid, port, state }) => ({ id, user, pid, port, state }))
        .toSorted((a, b) => (a.id < b.id ? -1 : 1));
    const before = await look();
    writeFileSync(join(fleet.root, "registry.json"), "damaged");
    expect(await fleet.refusal(7, ["ps"])).toMatchObject({
      code: "FLEET_STATE_CORRUPT",
      suggestions: expect.arrayContaining([expect.stringMatching(/^copilotfleet doctor --fix/)]),
    });
    expect(await check("registry")).toMatchObject({
      check: { level: "failed", fix: "Add --fix to rebuild it from the folders and processes of the servers." },
    });
    expect(await fixed("registry")).toMatchObject({ check: { level: "ok", fixed: true } });
    expect(await look()).toEqual(before);
    for (const user of users) expect(await fleet.send(user, `of-${user.length}`, "on")).toBe("[turn 2] on");
    await fleet.ok(["stop", "--all"]);
    await fleet.ok(["delete", ...users.map((user) => `of-${user.length}`)]);
  });
});

import { createHash } from "node:crypto";
import { existsSync, lstatSync, readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { CopilotClient, RuntimeConnection } from "@github/copilot-sdk";
import { afterAll, afterEach, describe, expect, it, onTestFinished } from "vitest";
import { Fleet, type GcResult } from "../../src/index.js";
import { openStore } from "../../src/store/store.js";
import { testFleet } from "../fixtures/commands/cli.js";
import { eventually } from "../fixtures/eventually.js";
import { startHeldModel } from "../fixtures/models/held-model.js";
import { innerPidOf, isRunning, sleeper } from "../fixtures/processes.js";
import { makeOld } from "../fixtures/sessions/gc-sessions.js";
import { stepInHistory } from "../fixtures/sessions/session-history.js";
import { unused } from "../fixtures/sessions/unused.js";
import { damageRecord, dumped } from "../fixtures/store/database.js";

const model = await startHeldModel();
afterAll(() => model.close());
/** Ends the turns that a failed test left running. */
afterEach(() => model.release());
const fleet = testFleet(model.env);
const store = openStore("file", fleet.root);
const OLD_MS = 48 * 3_600_000;

const gc = async (...args: string[]) => await fleet.json<GcResult>(["gc", "--ttl", "24h", ...args]);
const idsOf = (sessions: readonly { id: string }[]) => sessions.map(({ id }) => id).toSorted();
const reasons = ({ skipped }: GcResult) => Object.fromEntries(skipped.map(({ id, reason }) => [id, reason]));

async function statePath(user: string): Promise<string> {
  return join((await fleet.server(user)).home, "session-state");
}

/** Makes a session look unused for `ageMs`: changes the times of its folder and, if there is one, of its record. */
async function age(user: string, id: string, ageMs = OLD_MS): Promise<void> {
  makeOld(join(await statePath(user), id), ageMs);
  if ((await store.sessions.read(id)) === null) return;
  await store.sessions.update(id, (record) => {
    record.lastUsedAt = new Date(Date.now() - ageMs).toISOString();
  });
}

async function createOld(user: string, id: string, ...args: string[]): Promise<void> {
  await fleet.json(["create", "--user", user, "--id", id, ...args]);
  await age(user, id);
}

/** A client that connects to the user's server directly and does not use the fleet. */
async function stranger(user: string): Promise<CopilotClient> {
  const { url, token } = await fleet.json<{ url: string; token: string }>(["connect", "--user", user]);
  const client = new CopilotClient({ connection: RuntimeConnection.forUri(url, { connectionToken: token }) });
  await client.start();
  return client;
}

/**
 * Every path below a folder with its mode, modification time, inode and digest. In place of a database and the files
 * with which its readers agree, the records in it.
 */
function picture(folder: string, at = folder): string[] {
  return readdirSync(at, { withFileTypes: true }).flatMap((entry) => {
    if (/\.db-(wal|shm)$/.test(entry.name)) return [];
    if (entry.name.endsWith(".db")) return [entry.name, ...dumped(join(at, entry.name))];
    const path = join(at, entry.name);
    const { mode, mtimeMs, ino } = lstatSync(path);
    const digest = entry.isFile() ? createHash("sha256").update(readFileSync(path)).digest("hex") : "";
    const line = [relative(folder, path), mode, mtimeMs, ino, digest].join(" ");
    return entry.isDirectory() ? [line, ...picture(folder, path)] : [line];
  });
}

describe("deletions by gc", () => {
  it("gc deletes sessions past their TTL, with and without a turn, and reports each of them", async () => {
    await createOld("ann", "talked", "--prompt", "hi");
    await createOld("ann", "never-prompted");
    await fleet.create("ann", "young");
    const result = await gc();
    expect(result).toMatchObject({ skipped: [], dryRun: false, servers: [] });
    expect(idsOf(result.deleted)).toEqual(["never-prompted", "talked"]);
    for (const deleted of result.deleted) {
      expect(deleted).toEqual({ id: deleted.id, owner: "ann", ageMs: expect.any(Number), bytes: expect.any(Number) });
      expect(Math.round(deleted.ageMs / 3_600_000)).toBe(48);
      expect(deleted.bytes).toBeGreaterThan(100);
    }
    expect(result.freedBytes).toBe(result.deleted.reduce((sum, { bytes }) => sum + bytes, 0));
    expect(readdirSync(await statePath("ann"))).toEqual(["young"]);
    const { sessions } = await fleet.json<{ sessions: { id: string }[] }>(["list", "--user", "ann"]);
    expect(idsOf(sessions)).toEqual(["young"]);
    const { code, message } = await fleet.refusal(4, ["send", "talked", "x", "--user", "ann"]);
    expect({ code, message }).toEqual({
      code: "FLEET_SESSION_NOT_FOUND",
      message: expect.stringMatching(/^This session expired on 2\S+Z \(session\.ttl\)\.$/),
    });
    for (const args of [
      ["describe", "talked"],
      ["transcript", "talked", "--user", "ann"],
    ])
      expect((await fleet.refusal(4, args)).message).toBe(message);
    // Other users get the same error as for an id that never existed.
    for (const id of ["talked", "never-there"])
      expect((await fleet.refusal(4, ["send", id, "x", "--user", "eve"])).message).toBe(
        `There is no session "${id}" for this user.`,
      );
    expect(await fleet.send("ann", "young", "still there?")).toBe("[turn 1] still there?");
    // The id can be used again, and nothing of the old session is left.
    await fleet.create("ann", "talked");
    expect(await fleet.send("ann", "talked", "anew")).toBe("[turn 1] anew");
  });

  it("gc deletes an old session that a client made without the fleet, and reports the server's user as owner", async () => {
    await fleet.spawn("sue");
    const client = await stranger("sue");
    const session = await client.createSession({
      sessionId: "bob-project",
      onPermissionRequest: () => ({ kind: "reject" }),
    });
    await session.disconnect();
    await client.stop();
    await age("sue", "bob-project");
    expect((await gc()).deleted).toMatchObject([{ id: "bob-project", owner: "sue" }]);
    expect(readdirSync(await statePath("sue"))).toEqual([]);
  });

  it("gc uses a session's own TTL first, then --ttl, then the configured TTL", async () => {
    await fleet.json(["create", "--user", "tom", "--id", "short", "--ttl", "1h"]);
    await fleet.json(["create", "--user", "tom", "--id", "long", "--ttl", "30d"]);
    await fleet.create("tom", "usual");
    for (const id of ["short", "long", "usual"]) await age("tom", id, 2 * 3_600_000);
    expect(idsOf((await gc()).deleted)).toEqual(["short"]);
    expect(idsOf((await fleet.json<GcResult>(["gc", "--ttl", "1h", "--user", "tom"])).deleted)).toEqual(["usual"]);
    // Without --ttl, gc uses the configured TTL.
    await createOld("tom", "configured");
    await age("tom", "configured", 31 * 24 * 3_600_000);
    await createOld("tom", "kept");
    expect(await fleet.json(["gc", "--user", "tom"], { env: { COPILOTFLEET_SESSION_TTL: "null" } })).toMatchObject({
      deleted: [],
    });
    expect(idsOf((await fleet.json<GcResult>(["gc", "--user", "tom"])).deleted)).toEqual(["configured"]);
    expect(readdirSync(await statePath("tom")).sort()).toEqual(["kept", "long"]);
    await fleet.json(["delete", "kept"]);
  });

  it("gc --user deletes only the sessions of that user", async () => {
    await createOld("una", "una-1");
    await createOld("max", "max-1");
    expect((await gc("--user", "una")).deleted).toMatchObject([{ id: "una-1", owner: "una" }]);
    expect((await gc("--user", "max")).deleted).toMatchObject([{ id: "max-1", owner: "max" }]);
    expect((await gc("--user", "nobody")).deleted).toEqual([]);
  });

  it("gc deletes the old sessions of a killed server, records the server as failed, and later removes it", async () => {
    await createOld("kim", "before", "--prompt", "hi");
    const library = await Fleet.open({ env: fleet.env, cwd: fleet.folder });
    await library.sessions.create({ user: "kim", sessionId: "loaded" });
    await age("kim", "loaded");
    const { id, pid, home } = await fleet.server("kim");
    const lock = `inuse.${innerPidOf(pid ?? 0)}.lock`;
    process.kill(pid ?? 0, "SIGKILL");
    await eventually("the server's end", () => !isRunning(pid ?? 0));
    await library.close();
    expect(readdirSync(join(home, "session-state", "loaded"))).toContain(lock);
    expect((await gc("--dry-run")).servers).toEqual([{ id, action: "failed" }]);
    const result = await gc();
    expect(idsOf(result.deleted)).toEqual(["before", "loaded"]);
    expect(result.servers).toEqual([{ id, action: "failed" }]);
    expect((await store.registry.read()).servers[id]).toMatchObject({ state: "failed", port: null });
    // When the server itself is old enough, gc removes its record and its folder.
    makeOld(join(fleet.root, "servers", id), OLD_MS);
    await store.registry.update(({ servers }) => {
      for (const server of Object.values(servers)) if (server.id === id) server.createdAt = "2026-01-01T00:00:00.000Z";
    });
    expect((await gc()).servers).toEqual([{ id, action: "removed" }]);
    expect(readdirSync(join(fleet.root, "servers"))).not.toContain(id);
    expect((await store.registry.read()).servers[id]).toBeUndefined();
    await fleet.create("kim", "anew");
  });

  it("gc kills a server process of this fleet that has no record, but not in a dry run", async () => {
    const pid = sleeper({ COPILOTFLEET_OWNER: fleet.root, COPILOTFLEET_LAUNCH_ID: "stray" });
    await eventually("the stray", () => fleet.processes().includes(pid));
    const stray = { id: "stray", action: "stray-killed" };
    expect((await gc("--dry-run")).servers).toEqual([stray]);
    expect(isRunning(pid)).toBe(true);
    expect((await gc()).servers).toEqual([stray]);
    expect(isRunning(pid)).toBe(false);
  });
});

describe("sessions that gc keeps", () => {
  it("gc keeps old sessions that are loaded, in a turn or leased, and reports why", async () => {
    // Close this fleet before the next test, which expects no writes: a fleet records turns two seconds late.
    await using library = await Fleet.open({ env: fleet.env, cwd: fleet.folder });
    const user = unused("uma");
    const ids = { active: unused("active"), busy: unused("busy"), leased: unused("leased") };
    await library.sessions.create({ user, sessionId: ids.active });
    const busy = await library.sessions.create({ user, sessionId: ids.busy });
    await fleet.create(user, ids.leased);
    await fleet.ok(["lock", ids.leased, "--user", user]);
    const turn = library.sessions.send(busy, "!hold done");
    await eventually("the turn", () => model.held() === 1);
    await stepInHistory((await fleet.server(user)).home, ids.busy);
    for (const id of Object.values(ids)) await age(user, id);
    for (const args of [["--dry-run"], []]) {
      const result = await gc(...args, "--user", user);
      expect(result.deleted).toEqual([]);
      expect(reasons(result)).toEqual({ [ids.active]: "active", [ids.busy]: "busy", [ids.leased]: "leased" });
    }
    model.release();
    expect((await turn).text).toBe("[turn 1] done");
    expect((await library.sessions.send(busy, "and on")).text).toBe("[turn 2] and on");
  });

  it("gc --dry-run reports what it would delete, and changes nothing on disk", async () => {
    await createOld("dee", "would-go", "--prompt", "hi");
    // Stop all servers first, because a running server may write files at any time.
    const { servers } = await store.registry.read();
    await fleet.ok(["stop", "--all"]);
    // This process started the servers. So it notes how they ended, which may take a moment.
    for (const { home, launchId } of Object.values(servers).filter((server) => server.process !== null)) {
      const note = join(dirname(home), "last-end.json");
      await eventually("the note", () => existsSync(note) && readFileSync(note, "utf8").includes(launchId ?? ""));
    }
    const before = picture(fleet.root);
    const result = await gc("--dry-run", "--user", "dee");
    expect(result).toMatchObject({ dryRun: true, deleted: [{ id: "would-go", owner: "dee" }] });
    expect(result.freedBytes).toBeGreaterThan(100);
    expect(picture(fleet.root)).toEqual(before);
    const text = await fleet.ok(["gc", "--ttl", "24h", "--dry-run", "--user", "dee"]);
    expect(text).toMatch(
      /^SESSION +OWNER +AGE +SIZE\nwould-go +dee +2d +\d.*\ngc: would delete 1 session \(.*\), skipped 0/,
    );
    expect(picture(fleet.root)).toEqual(before);
  });
});

describe("the command gc", () => {
  it("gc prints exactly one line, which suits the log of cron, even if it deletes nothing", async () => {
    const user = unused("cron");
    await createOld(user, unused("old"), "--prompt", "hi");
    expect(await fleet.ok(["gc", "--ttl", "24h", "--user", user])).toMatch(
      /^gc: deleted 1 session \(\d+\.\d kB\), skipped 0, cleared 0 servers\n$/,
    );
    expect(await fleet.ok(["gc", "--ttl", "24h", "--user", user])).toBe(
      "gc: deleted 0 sessions (0 B), skipped 0, cleared 0 servers\n",
    );
  });

  it("gc with one unreadable record deletes other old sessions, suggests a repair, and exits with 7", async () => {
    const [user, other] = [unused("dora"), unused("otto")];
    const [damaged, old] = [unused("damaged"), unused("old")];
    await createOld(user, damaged, "--prompt", "hi");
    await createOld(other, old, "--prompt", "hi");
    const repair = damageRecord(fleet.root, "session", damaged);
    onTestFinished(repair);
    const json = await fleet.run(["gc", "--ttl", "24h", "--user", other, "--dry-run", "--json"]);
    expect(json).toMatchObject({ code: 7, stderr: "" });
    expect(JSON.parse(json.stdout)).toMatchObject({
      deleted: [{ id: old }],
      unreadable: [{ id: damaged, code: "FLEET_STATE_CORRUPT", message: expect.stringContaining(damaged) }],
    });
    const { code, stdout, stderr } = await fleet.run(["gc", "--ttl", "24h", "--user", other]);
    expect(stdout).toMatch(/^gc: deleted 1 session /);
    expect(stderr.split("\n")).toEqual([
      expect.stringMatching(
        /^Error: gc left session "damaged-?\d*" alone, because its record cannot be read\. The state in ".*" is not readable: .* \[FLEET_STATE_CORRUPT\]$/,
      ),
      "  Try: copilotfleet doctor",
      "  Try: copilotfleet doctor --fix",
      "",
    ]);
    expect(code).toBe(7);
    repair();
    expect(idsOf((await gc("--user", user)).deleted)).toEqual([damaged]);
  });
});

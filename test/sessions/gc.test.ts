import {
  existsSync,
  lutimesSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { ownIdentity } from "../../src/runtime/process/process-table.js";
import { setUseMarker } from "../../src/servers/use-markers.js";
import { makeOld } from "../fixtures/sessions/gc-sessions.js";
import { type GcState, gcState, HOUR_MS, OLD_MS } from "../fixtures/sessions/gc-state.js";
import { meddling } from "../fixtures/store/altered-store.js";
import { damageRecord } from "../fixtures/store/database.js";
import { serverRecord } from "../fixtures/store/store-records.js";

const NO_WAIT = { waitMs: 0, signal: undefined };

const PID = process.pid;

const idsOf = (sessions: readonly { id: string }[]) => sessions.map(({ id }) => id).toSorted();

async function recorded(state: GcState): Promise<string[]> {
  return idsOf(await state.store.sessions.list());
}

describe("sessions that gc finds", () => {
  it("gc deletes sessions past their TTL, and keeps younger ones", async () => {
    const state = await gcState();
    await state.server("s1");
    await state.session("s1", "old");
    await state.session("s1", "young", {}, HOUR_MS);
    const result = await state.gc();
    expect(result).toMatchObject({ skipped: [], dryRun: false, servers: [] });
    expect(result.deleted).toEqual([{ id: "old", owner: "alice", ageMs: expect.any(Number), bytes: 33 }]);
    expect(Math.round((result.deleted[0]?.ageMs ?? 0) / HOUR_MS)).toBe(48);
    expect(result.freedBytes).toBe(33);
    expect(readdirSync(state.statePath("s1"))).toEqual(["young"]);
    expect(readdirSync(state.home("s1"))).toEqual(["session-state"]);
    expect(await recorded(state)).toEqual(["young"]);
  });

  it("gc keeps a session if either its record or a file in its folder shows a recent use", async () => {
    const state = await gcState();
    await state.server("s1");
    await state.session("s1", "written", {}, OLD_MS);
    writeFileSync(join(state.folder("s1", "written"), "checkpoints", "new.md"), "x");
    await state.session("s1", "used", { lastUsedAt: new Date().toISOString() });
    expect((await state.gc()).deleted).toEqual([]);
    expect(await recorded(state)).toEqual(["used", "written"]);
  });

  it("gc reports a session whose record is unreadable, keeps its history, and deletes all other due sessions", async () => {
    const state = await gcState();
    await state.server("s1");
    await state.server("s2");
    await state.session("s1", "damaged");
    await state.session("s1", "old");
    await state.session("s2", "older", { owner: "bob" });
    damageRecord(state.root, "session", "damaged");
    const database = join(state.root, "state.db");
    const unreadable = {
      id: "damaged",
      code: "FLEET_STATE_CORRUPT",
      message: `The state in "${database}" is not readable: the session "damaged" is not valid JSON.`,
      suggestions: ["copilotfleet doctor", "copilotfleet doctor --fix"],
    };
    for (const dryRun of [true, false]) {
      const result = await state.gc({ dryRun });
      expect(idsOf(result.deleted)).toEqual(["old", "older"]);
      expect(result.unreadable).toEqual([unreadable]);
    }
    expect(readdirSync(state.statePath("s1"))).toEqual(["damaged"]);
    expect(readdirSync(join(state.root, "servers"))).toEqual(["s1", "s2"]);
    expect(idsOf(await state.store.sessions.list(() => undefined))).toEqual([]);
  });

  it("gc deletes old records that have no folder, even if their server is not in the registry", async () => {
    const state = await gcState();
    await state.server("s1");
    const then = new Date(Date.now() - OLD_MS).toISOString();
    for (const serverId of ["s1", "nowhere"]) {
      const record = { ...(await state.session("s1", `of-${serverId}`)), serverId, lastUsedAt: then };
      await state.store.sessions.delete(record.id);
      renameSync(state.folder("s1", record.id), join(state.root, `was-${record.id}`));
      await state.store.sessions.create(record);
    }
    expect(idsOf((await state.gc()).deleted)).toEqual(["of-nowhere", "of-s1"]);
    expect(await recorded(state)).toEqual([]);
  });

  it("gc reports the home's user as owner of an unrecorded session, and no owner in a shared server's home", async () => {
    const state = await gcState();
    await state.server("own", { user: "mary-jane" });
    await state.server("shared-1", { user: null, isolation: "shared" });
    state.plant("own", "alice-session");
    state.plant("shared-1", "bob-session");
    const { deleted } = await state.gc();
    expect(Object.fromEntries(deleted.map(({ id, owner }) => [id, owner]))).toEqual({
      "alice-session": "mary-jane",
      "bob-session": null,
    });
  });

  it("gc deletes ephemeral sessions whose process is gone, whatever their age", async () => {
    const state = await gcState();
    await state.server("s1");
    const dead = { ...ownIdentity(), startTicks: "1" };
    await state.session("s1", "abandoned", { persistence: "ephemeral", usedBy: dead }, 0);
    await state.session("s1", "used", { persistence: "ephemeral", usedBy: ownIdentity() }, 0);
    await state.session("s1", "waiting", { persistence: "ephemeral", usedBy: null }, 0);
    expect(idsOf((await state.gc()).deleted)).toEqual(["abandoned"]);
    expect((await state.gc({ ttlMs: 1 })).skipped).toEqual([{ id: "used", reason: "in-use" }]);
  });
});

describe("sessions that gc skips with a reason", () => {
  const lease = (sessionId: string) => ({ sessionId, holder: "alice", token: "t", ttlMs: 60_000, placeMs: 1_000 });

  it.each([
    ["skips a session as busy", `inuse.${PID}.lock`, "busy"], // the server has it in memory, perhaps in a turn
    ["deletes a session", "inuse.1.lock", null],
  ])("when the server does not answer, gc %s if the session has the lock file %s", async (_, lock, reason) => {
    const state = await gcState();
    await state.server("s1", { running: true });
    const folder = state.plant("s1", "held");
    writeFileSync(join(folder, lock), "");
    state.plant("s1", "held", OLD_MS);
    // A lock counts only if its PID belongs to the recorded server. PID 1 also runs, but is not that server.
    const { skipped, deleted } = await state.gc();
    expect(skipped).toEqual(reason === null ? [] : [{ id: "held", reason }]);
    expect(idsOf(deleted)).toEqual(reason === null ? ["held"] : []);
    expect(existsSync(folder)).toBe(reason !== null);
  });

  it("gc ignores the lock of a server that was killed", async () => {
    const state = await gcState();
    await state.server("s1", { running: true, process: { ...ownIdentity(), startTicks: "1" } });
    writeFileSync(join(state.plant("s1", "held"), `inuse.${PID}.lock`), "");
    state.plant("s1", "held", OLD_MS);
    expect(idsOf((await state.gc()).deleted)).toEqual(["held"]);
  });

  it("gc skips a session as leased until its lease is released", async () => {
    const state = await gcState();
    await state.server("s1");
    await state.session("s1", "held");
    await state.store.leases.acquire(lease("held"));
    expect(await state.gc()).toMatchObject({ deleted: [], skipped: [{ id: "held", reason: "leased" }] });
    await state.store.leases.release("held", "t");
    expect(idsOf((await state.gc()).deleted)).toEqual(["held"]);
  });

  it("gc skips a session as in-use while a process has a use marker on it", async () => {
    const state = await gcState();
    await state.server("s1");
    await state.session("s1", "held");
    const server = serverRecord("s1", { home: state.home("s1") });
    {
      using _use = await setUseMarker(server, "held", NO_WAIT);
      expect(await state.gc()).toMatchObject({ deleted: [], skipped: [{ id: "held", reason: "in-use" }] });
    }
    expect(idsOf((await state.gc()).deleted)).toEqual(["held"]);
  });

  describe("when a session comes into use during gc", () => {
    const record = async (state: GcState) => await state.store.sessions.read("held");

    it("gc keeps a session whose record changes after gc found the session due", async () => {
      const state = await gcState();
      await state.server("s1");
      await state.session("s1", "held");
      const store = meddling(state.store, "leases", "read", () =>
        state.store.sessions.update("held", (draft) => ++draft.turns),
      );
      expect(await state.gc({ store })).toMatchObject({ deleted: [], skipped: [{ id: "held", reason: "in-use" }] });
      expect(await record(state)).toMatchObject({ turns: 2 });
      expect(existsSync(state.folder("s1", "held"))).toBe(true);
    });

    it("gc restores a session whose lease is taken while gc deletes its record", async () => {
      const state = await gcState();
      await state.server("s1");
      const before = await state.session("s1", "held");
      const store = meddling(state.store, "sessions", "deleteMany", () => state.store.leases.acquire(lease("held")));
      expect(await state.gc({ store })).toMatchObject({ deleted: [], skipped: [{ id: "held", reason: "leased" }] });
      expect(await record(state)).toEqual(before);
      expect(existsSync(state.folder("s1", "held"))).toBe(true);
    });

    it("gc restores a session that gets a use marker while gc deletes its record", async () => {
      const state = await gcState();
      await state.server("s1");
      const before = await state.session("s1", "held");
      const server = serverRecord("s1", { home: state.home("s1") });
      const store = meddling(state.store, "sessions", "deleteMany", () => setUseMarker(server, "held", NO_WAIT));
      expect(await state.gc({ store })).toMatchObject({ deleted: [], skipped: [{ id: "held", reason: "in-use" }] });
      expect(await record(state)).toEqual(before);
    });

    it("gc restores a session that a server opens while gc moves its folder, and keeps both histories", async () => {
      const state = await gcState();
      await state.server("s1", { running: true });
      const before = await state.session("s1", "held");
      const folder = state.folder("s1", "held");
      const store = meddling(state.store, "registry", "read", () => {
        if (existsSync(folder)) return;
        // The runtime does this when the folder of its session is missing.
        mkdirSync(folder);
        writeFileSync(join(folder, `inuse.${PID}.lock`), "");
        writeFileSync(join(folder, "events.jsonl"), '{"session":"resumed"}\n');
      });
      expect(await state.gc({ store })).toMatchObject({ deleted: [], skipped: [{ id: "held", reason: "in-use" }] });
      expect(await record(state)).toEqual(before);
      expect(readFileSync(join(folder, "events.jsonl"), "utf8")).toBe('{"session":"resumed"}\n');
      const [kept = ""] = readdirSync(folder).filter((name) => name.startsWith("before-gc-"));
      expect(readFileSync(join(folder, kept, "events.jsonl"), "utf8")).toBe('{"session":"held"}\n');
      expect(state.warnings.join()).toContain(join(folder, kept));
      expect(readdirSync(state.home("s1"))).toEqual(["session-state"]);
    });

    it("gc keeps an unrecorded session that the fleet records during gc", async () => {
      const state = await gcState();
      await state.server("s1");
      state.plant("s1", "held");
      const store = meddling(state.store, "registry", "read", async () => {
        if (existsSync(state.folder("s1", "held")) || (await record(state)) !== null) return;
        const found = { ...(await state.session("s1", "other", {}, 0)), id: "held" };
        await state.store.sessions.create(found);
      });
      expect(await state.gc({ store })).toMatchObject({ deleted: [], skipped: [{ id: "held", reason: "in-use" }] });
      expect(existsSync(state.folder("s1", "held"))).toBe(true);
    });
  });
});

const THEN = new Date(Date.now() - OLD_MS).toISOString();
const old = { createdAt: THEN, startedAt: null };

/** Makes all servers look unused for a long time. */
function age(state: GcState): void {
  makeOld(join(state.root, "servers"), OLD_MS);
}

async function serverIds(state: GcState): Promise<string[]> {
  return Object.keys((await state.store.registry.read()).servers).toSorted();
}

const folders = (state: GcState) => readdirSync(join(state.root, "servers")).toSorted();

describe("servers that gc removes", () => {
  it.each(["stopped", "failed"] as const)("gc completely removes a %s server without sessions", async (state_) => {
    const state = await gcState();
    await state.server("s1", { ...old, state: state_ });
    age(state);
    expect((await state.gc({ dryRun: true })).servers).toEqual([{ id: "s1", action: "removed" }]);
    expect(await serverIds(state)).toEqual(["s1"]);
    expect((await state.gc()).servers).toEqual([{ id: "s1", action: "removed" }]);
    expect(await serverIds(state)).toEqual([]);
    expect(folders(state)).toEqual([]);
    expect((await state.gc()).servers).toEqual([]);
  });

  it("gc removes a server together with its last sessions", async () => {
    const state = await gcState();
    await state.server("s1", old);
    await state.session("s1", "last");
    state.plant("s1", "unrecorded");
    age(state);
    const foreseen = await state.gc({ dryRun: true });
    expect(foreseen.servers).toEqual([{ id: "s1", action: "removed" }]);
    const result = await state.gc();
    expect(result).toMatchObject({ servers: [{ id: "s1", action: "removed" }] });
    expect(result.deleted).toHaveLength(2);
    expect(folders(state)).toEqual([]);
  });

  it("gc removes the old folder of a server without a record, and leaves folders of other kinds", async () => {
    const state = await gcState();
    mkdirSync(join(state.home("orphan"), "session-state"), { recursive: true });
    expect((await state.gc()).servers).toEqual([]);
    age(state);
    mkdirSync(join(state.root, "servers", "something-else"));
    expect((await state.gc()).servers).toEqual([{ id: "orphan", action: "orphan-removed" }]);
    expect(folders(state)).toEqual(["something-else"]);
  });

  it("gc removes a shared server, but not the sessions folder that it shares with other servers", async () => {
    const state = await gcState();
    const common = join(state.root, "servers", "shared", "session-state");
    mkdirSync(common, { recursive: true });
    for (const id of ["shared-1", "shared-2"]) {
      mkdirSync(state.home(id), { recursive: true });
      symlinkSync(common, state.statePath(id));
      await state.server(id, { ...old, user: null, isolation: "shared" });
    }
    await state.session("shared-2", "young", {}, HOUR_MS);
    age(state);
    makeOld(state.folder("shared-2", "young"), HOUR_MS);
    expect((await state.gc()).servers).toEqual([{ id: "shared-1", action: "removed" }]);
    expect(folders(state)).toEqual(["shared", "shared-2"]);
    expect(readdirSync(common)).toEqual(["young"]);
  });

  it("gc removes the temporary folders of commands that were killed", async () => {
    const state = await gcState();
    await state.server("s1");
    const left = [join(state.root, "servers", ".removed-1-1-ab"), join(state.root, ".tmp-999999999-ab")];
    for (const path of left) mkdirSync(path);
    await state.gc();
    expect(left.filter((path) => existsSync(path))).toEqual([]);
  });
});

describe("servers that gc leaves", () => {
  it.each([
    ["that is young", { ...old, createdAt: new Date().toISOString() }],
    ["that runs", { ...old, running: true }],
    ["that a process has claimed", { ...old, claim: ownIdentity() }],
  ])("gc leaves a server %s", async (_, over) => {
    const state = await gcState();
    await state.server("s1", over);
    age(state);
    expect((await state.gc()).servers).toEqual([]);
    expect(await serverIds(state)).toEqual(["s1"]);
    expect(folders(state)).toEqual(["s1"]);
  });

  it.each(["server.log", "connection-token", "uses", "open"])("gc leaves a server with a recent %s", async (name) => {
    const state = await gcState();
    await state.server("s1", old);
    const path = join(state.root, "servers", "s1", name);
    writeFileSync(path, "");
    age(state);
    const now = new Date();
    lutimesSync(path, now, now);
    expect((await state.gc()).servers).toEqual([]);
  });

  it("gc keeps a server that still has a session's record or folder", async () => {
    const state = await gcState();
    await state.server("recorded", old);
    await state.session("recorded", "a", { ttlMs: 96 * HOUR_MS });
    await state.server("found", old);
    state.plant("found", "b", HOUR_MS);
    age(state);
    makeOld(state.folder("found", "b"), HOUR_MS);
    expect((await state.gc()).servers).toEqual([]);
    expect(folders(state)).toEqual(["found", "recorded"]);
  });

  it("gc for one user leaves the servers of other users and folders without a record", async () => {
    const state = await gcState();
    await state.server("a", { ...old, user: "alice" });
    await state.server("b", { ...old, user: "bob" });
    mkdirSync(state.home("orphan"), { recursive: true });
    age(state);
    expect((await state.gc({ user: "alice" })).servers).toEqual([{ id: "a", action: "removed" }]);
    expect(folders(state)).toEqual(["b", "orphan"]);
  });
});

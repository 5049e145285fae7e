import { existsSync, lutimesSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { ownIdentity } from "../../src/runtime/process/process-table.js";
import { makeOld } from "../fixtures/sessions/gc-sessions.js";
import { type GcState, gcState, HOUR_MS, OLD_MS } from "../fixtures/sessions/gc-state.js";

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

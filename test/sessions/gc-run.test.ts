import { existsSync, readdirSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { SessionRecord } from "../../src/base/session.js";
import { Run } from "../../src/sessions/gc/collect.js";
import { type GcState, gcState, HOUR_MS } from "../fixtures/sessions/gc-state.js";

const idsOf = (sessions: readonly { id: string }[]) => sessions.map(({ id }) => id).toSorted();
const gcFolder = (state: GcState) => join(state.home("s1"), "..", ".copilotfleet-gc");
const note = (id: string, record: SessionRecord | null = null) => ({ id, owner: "bob", record, notedAtMs: Date.now() });

/** Makes the existing runs look like the runs of a process that was killed. */
function kill(state: GcState): void {
  for (const name of readdirSync(gcFolder(state))) {
    renameSync(join(gcFolder(state), name), join(gcFolder(state), name.replace(/^\d+-\d+-/, "1-1-")));
  }
}

describe("a gc that was killed", () => {
  it("gc keeps a session that was used after a killed gc had listed it for deletion", async () => {
    const state = await gcState();
    await state.server("s1");
    new Run(state.statePath("s1")).note([note("used"), note("recorded")]);
    kill(state);
    state.plant("s1", "used", -1_000);
    await state.session("s1", "recorded", {}, HOUR_MS);
    expect(await state.gc()).toMatchObject({ deleted: [], skipped: [] });
    expect(readdirSync(state.statePath("s1")).toSorted()).toEqual(["recorded", "used"]);
    expect(readdirSync(join(state.home("s1"), ".."))).toEqual(["home"]);
  });

  it("gc restores a session and its record if a killed gc had moved the session away while a server had it open", async () => {
    const state = await gcState();
    await state.server("s1", { running: true });
    const record = await state.session("s1", "open");
    await state.store.sessions.delete("open");
    const run = new Run(state.statePath("s1"));
    run.note([note("open", record)]);
    const moved = run.take("open");
    writeFileSync(join(moved ?? "", `inuse.${process.pid}.lock`), "");
    kill(state);
    expect(await state.gc()).toMatchObject({ deleted: [], skipped: [{ id: "open", reason: "in-use" }] });
    expect(existsSync(join(state.folder("s1", "open"), "events.jsonl"))).toBe(true);
    expect(await state.store.sessions.read("open")).toEqual(record);
  });
});

describe("several gcs at the same time", () => {
  it("gc leaves alone the sessions that another running gc has listed for deletion", async () => {
    const state = await gcState();
    await state.server("s1");
    state.plant("s1", "theirs");
    state.plant("s1", "ours");
    const other = new Run(state.statePath("s1"));
    other.note([note("theirs")]);
    expect(idsOf((await state.gc()).deleted)).toEqual(["ours"]);
    expect(readdirSync(state.statePath("s1"))).toEqual(["theirs"]);
    other.end(true);
    expect(idsOf((await state.gc()).deleted)).toEqual(["theirs"]);
  });

  it("three gcs at the same time delete all due sessions, and report each session once", async () => {
    const state = await gcState();
    await state.server("s1");
    const ids = Array.from({ length: 40 }, (_, index) => `s${index}`);
    for (const [index, id] of ids.entries()) {
      if (index % 2 === 0) state.plant("s1", id);
      else await state.session("s1", id);
    }
    const all = await Promise.all([state.gc(), state.gc(), state.gc()]);
    expect(idsOf(all.flatMap(({ deleted }) => deleted))).toEqual(ids.toSorted());
    expect(all.flatMap(({ skipped }) => skipped)).toEqual([]);
    expect(readdirSync(join(state.home("s1"), ".."))).toEqual(["home"]);
  });
});

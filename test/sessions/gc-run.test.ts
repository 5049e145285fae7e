import { existsSync, linkSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import type { SessionRecord } from "../../src/base/session.js";
import { Run } from "../../src/sessions/gc/collect.js";
import { restoredRecord } from "../../src/sessions/view.js";
import type { SessionStore } from "../../src/store/ports.js";
import { type GcState, gcState, HOUR_MS } from "../fixtures/sessions/gc-state.js";
import { altered, meddling } from "../fixtures/store/altered-store.js";

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
  it("gc finishes a deletion that a killed gc had only listed, even if the session is younger than the TTL", async () => {
    const state = await gcState();
    await state.server("s1");
    // The killed gc has already deleted the session's record, which had a short TTL.
    state.plant("s1", "begun", HOUR_MS);
    new Run(state.statePath("s1")).note([note("begun")]);
    kill(state);
    expect(await state.gc({ dryRun: true })).toMatchObject({ deleted: [{ id: "begun", owner: "bob" }] });
    expect(await state.gc()).toMatchObject({ deleted: [{ id: "begun", owner: "bob" }], skipped: [] });
    expect(readdirSync(join(state.home("s1"), ".."))).toEqual(["home"]);
  });

  it("if another gc is killed during this run, gc leaves the sessions that it had listed to the next gc", async () => {
    const state = await gcState();
    await state.server("s1");
    // This run first deletes the record of `record-only`. Right after that, `kill` makes the run of the other gc look like
    // that of a killed process.
    await state.session("s1", "record-only");
    rmSync(state.folder("s1", "record-only"), { recursive: true });
    state.plant("s1", "begun", HOUR_MS);
    new Run(state.statePath("s1")).note([note("begun")]);
    const store = meddling(state.store, "sessions", "deleteMany", () => kill(state));
    expect(idsOf((await state.gc({ store })).deleted)).toEqual(["record-only"]);
    expect(readdirSync(state.statePath("s1"))).toEqual(["begun"]);
    expect(idsOf((await state.gc()).deleted)).toEqual(["begun"]);
    expect(readdirSync(join(state.home("s1"), ".."))).toEqual(["home"]);
  });

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

  it("gc removes and reports a session that a killed gc had moved away for deletion", async () => {
    const state = await gcState();
    await state.server("s1");
    state.plant("s1", "moved");
    const run = new Run(state.statePath("s1"));
    run.note([note("moved")]);
    run.take("moved");
    kill(state);
    expect(await state.gc({ dryRun: true })).toMatchObject({ deleted: [{ id: "moved", owner: "bob", bytes: 37 }] });
    expect(await state.gc()).toMatchObject({ deleted: [{ id: "moved", owner: "bob", bytes: 37 }], freedBytes: 37 });
    expect(readdirSync(join(state.home("s1"), ".."))).toEqual(["home"]);
    expect((await state.gc()).deleted).toEqual([]);
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

  it("a gc that lists more sessions keeps its notes about moved sessions, so that the next gc can restore them", async () => {
    const state = await gcState();
    await state.server("s1", { running: true });
    const record = await state.session("s1", "open");
    await state.store.sessions.delete("open");
    state.plant("s1", "removed");
    state.plant("s1", "listed-later");
    const run = new Run(state.statePath("s1"));
    run.note([note("open", record), note("removed"), note("skipped")]);
    const moved = run.take("open") ?? "";
    writeFileSync(join(moved, `inuse.${process.pid}.lock`), "");
    await run.remove(run.take("removed") ?? "");
    run.note([note("listed-later")]);
    kill(state);
    const [name = ""] = readdirSync(gcFolder(state));
    const listed = JSON.parse(readFileSync(join(gcFolder(state), name, "journal.json"), "utf8"));
    expect(idsOf(listed)).toEqual(["listed-later", "open"]);
    const due = [
      { id: "listed-later", owner: "bob" },
      { id: "open", owner: "bob" },
    ];
    const foreseen = (await state.gc({ dryRun: true })).deleted.map(({ id, owner }) => ({ id, owner }));
    expect(foreseen.toSorted((a, b) => a.id.localeCompare(b.id))).toEqual(due);
    expect(await state.gc()).toMatchObject({
      deleted: [{ id: "listed-later", owner: "bob" }],
      skipped: [{ id: "open", reason: "in-use" }],
    });
    expect(await state.store.sessions.read("open")).toEqual(record);
  });

  it("a gc that is killed while it lists more sessions leaves its first list intact", async () => {
    const state = await gcState();
    await state.server("s1");
    const run = new Run(state.statePath("s1"));
    run.note([note("first")]);
    const [name = ""] = readdirSync(gcFolder(state));
    const journal = join(gcFolder(state), name, "journal.json");
    const before = readFileSync(journal, "utf8");
    // The second name of the file shows whether the gc writes into the old list or replaces it.
    linkSync(journal, join(state.root, "first-list"));
    run.note([note("second")]);
    expect(readFileSync(join(state.root, "first-list"), "utf8")).toBe(before);
    expect(idsOf(JSON.parse(readFileSync(journal, "utf8")))).toEqual(["second"]);
    expect(readdirSync(join(journal, "..")).toSorted()).toEqual(["journal.json", "sessions"]);
  });

  it("gc ignores and removes a damaged list of sessions that a killed gc left", async () => {
    const state = await gcState();
    await state.server("s1");
    state.plant("s1", "young", HOUR_MS);
    new Run(state.statePath("s1")).note([note("young")]);
    kill(state);
    const [name = ""] = readdirSync(gcFolder(state));
    writeFileSync(join(gcFolder(state), name, "journal.json"), '[{"id":"yo');
    expect((await state.gc()).deleted).toEqual([]);
    expect(readdirSync(join(state.home("s1"), ".."))).toEqual(["home"]);
    expect(readdirSync(state.statePath("s1"))).toEqual(["young"]);
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

describe("a gc that fails half way", () => {
  it("gc finishes the deletions of an earlier gc that failed half way", async () => {
    const state = await gcState();
    await state.server("s1");
    await state.session("s1", "short", { ttlMs: HOUR_MS }, 2 * HOUR_MS);
    const store = meddling(state.store, "sessions", "deleteMany", () => {
      throw new Error("full disk");
    });
    await expect(state.gc({ store })).rejects.toThrow("full disk");
    expect(await state.store.sessions.list()).toEqual([]);
    expect(idsOf((await state.gc()).deleted)).toEqual(["short"]);
    expect(readdirSync(join(state.home("s1"), ".."))).toEqual(["home"]);
  });
});

describe("a session whose record a running gc has deleted", () => {
  async function undecided() {
    const state = await gcState();
    await state.server("s1");
    const record = await state.session("s1", "due");
    const run = new Run(state.statePath("s1"));
    run.note([note("due", record)]);
    await state.store.sessions.delete("due");
    let reads = 0;
    const read: SessionStore["read"] = async (id) => {
      reads++;
      return await state.store.sessions.read(id);
    };
    const counting = altered(state.store, { sessions: { read } });
    const answer = restoredRecord(counting, { home: state.home("s1") }, "due");
    // `answer` is still waiting: restoredRecord has looked for the record several times.
    await expect.poll(() => reads).toBeGreaterThan(2);
    return { state, run, record, answer };
  }

  it("restoredRecord resolves with the session's old record after gc has restored the folder and the record", async () => {
    const { state, run, record, answer } = await undecided();
    const moved = run.take("due") ?? "";
    run.giveBack("due", moved);
    await state.store.sessions.create(record);
    expect(await answer).toEqual(record);
  });

  it("restoredRecord resolves with null when gc has removed the session's folder", async () => {
    const { run, answer } = await undecided();
    expect(await run.remove(run.take("due") ?? "")).toBe(true);
    expect(await answer).toBeNull();
  });
});

import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { Run } from "../../src/sessions/gc-run.js";
import type { SessionRecord } from "../../src/store/store.js";
import { type GcState, gcState, HOUR_MS, meddling } from "../fixtures/gc-state.js";

const idsOf = (sessions: readonly { id: string }[]) => sessions.map(({ id }) => id).toSorted();
const gcFolder = (state: GcState) => join(state.home("s1"), "..", ".copilotfleet-gc");
const note = (id: string, record: SessionRecord | null = null) => ({ id, owner: "bob", record, notedAtMs: Date.now() });

/** Makes the runs that are there look like those of a process that was killed. */
function kill(state: GcState): void {
  for (const name of readdirSync(gcFolder(state))) {
    renameSync(join(gcFolder(state), name), join(gcFolder(state), name.replace(/^\d+-\d+-/, "1-1-")));
  }
}

describe("a gc that was killed", () => {
  it("before it moved a session: the next one deletes what it had begun, though it is young by now", async () => {
    const state = await gcState();
    await state.server("s1");
    // Its record had a short TTL of its own, and is gone already.
    state.plant("s1", "begun", HOUR_MS);
    new Run(state.statePath("s1")).note([note("begun")]);
    kill(state);
    expect(await state.gc({ dryRun: true })).toMatchObject({ deleted: [{ id: "begun", owner: "bob" }] });
    expect(await state.gc()).toMatchObject({ deleted: [{ id: "begun", owner: "bob" }], skipped: [] });
    expect(readdirSync(join(state.home("s1"), ".."))).toEqual(["home"]);
  });

  it("while another one had judged already: what it had begun is the one's after that", async () => {
    const state = await gcState();
    await state.server("s1");
    // With this the other one begins, and sees the first one killed only then.
    await state.session("s1", "record-only");
    rmSync(state.folder("s1", "record-only"), { recursive: true });
    state.plant("s1", "begun", HOUR_MS);
    new Run(state.statePath("s1")).note([note("begun")]);
    const store = meddling(state.store, "deleteSessions", () => kill(state));
    expect(idsOf((await state.gc({ store })).deleted)).toEqual(["record-only"]);
    expect(readdirSync(state.statePath("s1"))).toEqual(["begun"]);
    expect(idsOf((await state.gc()).deleted)).toEqual(["begun"]);
    expect(readdirSync(join(state.home("s1"), ".."))).toEqual(["home"]);
  });

  it("before it moved a session, which was used since: it goes by its age again", async () => {
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

  it("after it moved a session: the next one removes it, and tells so", async () => {
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

  it("after it moved a session that a server had open: it comes back, with its record", async () => {
    const state = await gcState();
    await state.server("s1", { running: true });
    const record = await state.session("s1", "open");
    await state.store.deleteSession("open");
    const run = new Run(state.statePath("s1"));
    run.note([note("open", record)]);
    const moved = run.take("open");
    writeFileSync(join(moved ?? "", `inuse.${process.pid}.lock`), "");
    kill(state);
    expect(await state.gc()).toMatchObject({ deleted: [], skipped: [{ id: "open", reason: "in-use" }] });
    expect(existsSync(join(state.folder("s1", "open"), "events.jsonl"))).toBe(true);
    expect(await state.store.readSession("open")).toEqual(record);
  });

  it("while it wrote its journal: nothing was touched, and nothing of it stays", async () => {
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

describe("a gc beside another", () => {
  it("leaves to it what that has in hand", async () => {
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

  it("reports each session once, whoever deletes it", async () => {
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
  it("leaves the rest to the next one", async () => {
    const state = await gcState();
    await state.server("s1");
    await state.session("s1", "short", { ttlMs: HOUR_MS }, 2 * HOUR_MS);
    const store = meddling(state.store, "deleteSessions", () => {
      throw new Error("full disk");
    });
    await expect(state.gc({ store })).rejects.toThrow("full disk");
    expect(await state.store.listSessions()).toEqual([]);
    expect(idsOf((await state.gc()).deleted)).toEqual(["short"]);
    expect(readdirSync(join(state.home("s1"), ".."))).toEqual(["home"]);
  });

  it("gives a session back into a folder that was made anew", async () => {
    const state = await gcState();
    const folder = state.plant("s1", "open");
    const run = new Run(state.statePath("s1"));
    run.note([note("open")]);
    const moved = run.take("open") ?? "";
    mkdirSync(join(folder, "checkpoints"), { recursive: true });
    writeFileSync(join(folder, "checkpoints", "index.md"), "newer\n");
    await run.giveBack("open", moved);
    expect(readFileSync(join(folder, "checkpoints", "index.md"), "utf8")).toBe("newer\n");
    expect(readFileSync(join(folder, "events.jsonl"), "utf8")).toBe('{"session":"open"}\n');
    run.end(true);
    expect(readdirSync(join(state.home("s1"), ".."))).toEqual(["home"]);
  });
});

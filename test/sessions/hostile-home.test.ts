import { execFileSync } from "node:child_process";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { type Budget, HeldFolder, removeTree, walk } from "../../src/base/held-folder.js";
import {
  isLoadedBy,
  lastWrite,
  listLoaded,
  listSessionFolders,
  MOST_FOLDERS,
  openHistoryFile,
  readSessionFolder,
  sessionBytes,
} from "../../src/runtime/history/session-state.js";
import { Run } from "../../src/sessions/gc/collect.js";
import { rounds } from "../fixtures/fleets/fault-fleet.js";
import { makeOld } from "../fixtures/sessions/gc-sessions.js";
import { type GcState, gcState, HOUR_MS, OLD_MS } from "../fixtures/sessions/gc-state.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

/** alice's agent can write anything in alice's home. bob has a session in a separate home, and it is not due. */
async function twoUsers(): Promise<GcState> {
  const state = await gcState();
  await state.server("alice-1", { user: "alice" });
  await state.server("bob-1", { user: "bob" });
  state.plant("bob-1", "of-bob", HOUR_MS);
  return state;
}

function relink(path: string, target: string): void {
  rmSync(path, { recursive: true, force: true });
  symlinkSync(target, path);
}

/** Checks that bob's session still has everything that gc could take from it. */
function isUnharmed(state: GcState): void {
  expect(readdirSync(state.folder("bob-1", "of-bob")).sort()).toEqual([
    "checkpoints",
    "events.jsonl",
    "workspace.yaml",
  ]);
}

describe("a home whose session-state is a link", () => {
  it("sessions of another user are neither listed nor deleted through a session-state that links to them", async () => {
    const state = await twoUsers();
    makeOld(state.folder("bob-1", "of-bob"), OLD_MS);
    // This session of bob has a record, and the record shows that it is not due.
    await state.session("bob-1", "recorded", { owner: "bob" }, HOUR_MS);
    relink(state.statePath("alice-1"), state.statePath("bob-1"));
    const home = state.home("alice-1");
    expect(listSessionFolders(home)).toEqual([]);
    expect(readSessionFolder(home, "recorded")).toBeNull();
    expect(sessionBytes(home, "recorded")).toBe(0);
    expect(openHistoryFile(home, "recorded")).toBeNull();
    expect((await state.gc({ user: "alice" })).deleted).toEqual([]);
    isUnharmed(state);
  });

  it("gc does not touch a folder outside of the fleet when a session-state links to that folder", async () => {
    const state = await twoUsers();
    const outside = join(state.root, "..", "outside");
    mkdirSync(join(outside, "project"), { recursive: true });
    writeFileSync(join(outside, "project", "file"), "");
    makeOld(join(outside, "project"), OLD_MS);
    relink(state.statePath("alice-1"), outside);
    expect((await state.gc()).deleted).toEqual([]);
    expect(readdirSync(join(outside, "project"))).toEqual(["file"]);
  });

  it("a session-state that links to itself counts as empty, and gc still works", async () => {
    const state = await twoUsers();
    relink(state.statePath("alice-1"), "session-state");
    expect(listSessionFolders(state.home("alice-1"))).toEqual([]);
    expect((await state.gc()).deleted).toEqual([]);
  });

  it("sessions are found through a session-state that the fleet has linked to the shared servers' common folder", async () => {
    const state = await gcState();
    await state.server("shared-1", { user: null });
    const common = join(state.root, "servers", "shared", "session-state");
    mkdirSync(common, { recursive: true });
    relink(state.statePath("shared-1"), common);
    state.plant("shared-1", "due");
    expect(listSessionFolders(state.home("shared-1"))).toEqual(["due"]);
    expect(readSessionFolder(state.home("shared-1"), "due")?.hasHistory).toBe(true);
    expect((await state.gc()).deleted.map(({ id }) => id)).toEqual(["due"]);
    expect(readdirSync(common)).toEqual([]);
  });
});

describe("a session's folder in a hostile home", () => {
  it("a session's folder that is a link is not read", async () => {
    const state = await twoUsers();
    const home = state.home("alice-1");
    symlinkSync(state.folder("bob-1", "of-bob"), state.folder("alice-1", "linked"));
    expect(readSessionFolder(home, "linked")).toBeNull();
    expect(sessionBytes(home, "linked")).toBe(0);
    expect(lastWrite(home, "linked")).toBe(0);
    expect(openHistoryFile(home, "linked")).toBeNull();
    writeFileSync(join(state.folder("bob-1", "of-bob"), `inuse.${process.pid}.lock`), "");
    expect(isLoadedBy(home, "linked", process)).toBe(false);
    expect(listLoaded(home, process)).toEqual([]);
  });

  it("a session's history that is a pipe, a device or a link is refused without waiting", async () => {
    const state = await twoUsers();
    const home = state.home("alice-1");
    const history = join(state.plant("alice-1", "s"), "events.jsonl");
    rmSync(history);
    execFileSync("mkfifo", [history]);
    expect(() => openHistoryFile(home, "s")).toThrow(/not a file/);
    expect(sessionBytes(home, "s")).toBeGreaterThan(0);
    relink(history, "/dev/zero");
    expect(() => openHistoryFile(home, "s")).toThrow(/ELOOP/);
    relink(history, join(state.folder("bob-1", "of-bob"), "events.jsonl"));
    expect(() => openHistoryFile(home, "s")).toThrow(/ELOOP/);
    expect(lastWrite(home, "s")).not.toBe(0);
  });

  it("gc deletes a due session with its pipes and links, and nothing that the links lead to", async () => {
    const state = await twoUsers();
    const folder = state.plant("alice-1", "due");
    execFileSync("mkfifo", [join(folder, "pipe")]);
    symlinkSync(state.folder("bob-1", "of-bob"), join(folder, "link"));
    makeOld(folder, OLD_MS);
    execFileSync("touch", ["-h", "-d", "2 days ago", join(folder, "link"), join(folder, "pipe")]);
    expect((await state.gc()).deleted.map(({ id }) => id)).toEqual(["due"]);
    expect(existsSync(folder)).toBe(false);
    isUnharmed(state);
  });

  it("gc leaves a session's folder alone, and the link's target, if the folder became a link after the survey", async () => {
    const state = await twoUsers();
    state.plant("alice-1", "due");
    const run = new Run(state.statePath("alice-1"));
    run.note([]);
    relink(state.folder("alice-1", "due"), state.folder("bob-1", "of-bob"));
    expect(run.take("due")).toBeNull();
    run.end(true);
    isUnharmed(state);
  });

  it("gc takes no session from another home when session-state became a link to it after the survey", async () => {
    const state = await twoUsers();
    state.plant("alice-1", "of-bob");
    const run = new Run(state.statePath("alice-1"));
    run.note([]);
    relink(state.statePath("alice-1"), state.statePath("bob-1"));
    expect(run.take("of-bob")).toBeNull();
    run.end(true);
    isUnharmed(state);
  });

  it("gc does not restore a session into the folder of another user to which a link in its place leads", async () => {
    const state = await twoUsers();
    const folder = state.plant("alice-1", "s");
    const run = new Run(state.statePath("alice-1"));
    run.note([]);
    const moved = run.take("s") ?? "";
    const before = readdirSync(state.folder("bob-1", "of-bob"));
    symlinkSync(state.folder("bob-1", "of-bob"), folder);
    run.giveBack("s", moved);
    run.end(true);
    expect(readdirSync(state.folder("bob-1", "of-bob"))).toEqual(before);
    isUnharmed(state);
  });
});

it("a fake folder of a gc run has no effect when an agent creates it in its own home", async () => {
  const state = await twoUsers();
  const planted = join(state.home("alice-1"), ".copilotfleet-gc", "0-0-ab");
  mkdirSync(planted, { recursive: true });
  symlinkSync(state.statePath("bob-1"), join(planted, "sessions"));
  expect((await state.gc()).deleted).toEqual([]);
  isUnharmed(state);
});

describe("a home with very many folders of sessions", () => {
  it("gc reads only part of a home with very many folders, warns about its user, and cleans other homes", async () => {
    const state = await twoUsers();
    makeOld(state.folder("bob-1", "of-bob"), OLD_MS);
    await state.session("alice-1", "zzz-recorded", { owner: "alice" });
    const folders = rounds(MOST_FOLDERS + 1_000, 30_000);
    for (let index = 0; index < folders; index++) mkdirSync(join(state.statePath("alice-1"), `x${index}`));
    expect(listSessionFolders(state.home("alice-1"))).toHaveLength(MOST_FOLDERS);
    const { deleted } = await state.gc();
    // gc finds these two sessions by their records, however many other folders there are.
    expect(deleted.map(({ id }) => id).sort()).toEqual(["of-bob", "zzz-recorded"]);
    expect(existsSync(state.folder("alice-1", "zzz-recorded"))).toBe(false);
    expect(state.warnings).toEqual([expect.stringContaining('The home of user "alice"')]);
  });

  it("gc deletes very many due sessions of one home over several runs", async () => {
    const state = await twoUsers();
    const old = new Date(Date.now() - OLD_MS);
    for (let index = 0; index < 1_500; index++) {
      const path = join(state.statePath("alice-1"), `x${index}`);
      mkdirSync(path);
      utimesSync(path, old, old);
    }
    expect((await state.gc()).deleted).toHaveLength(1_000);
    expect(state.warnings).toEqual([expect.stringContaining('The home of user "alice"')]);
    expect((await state.gc()).deleted).toHaveLength(500);
    expect(readdirSync(state.statePath("alice-1"))).toEqual([]);
  });
});

describe("a tree of very many or very deep folders", () => {
  /** Makes a chain of folders that is deeper than a walk descends, and whose path is longer than the system allows. */
  function deep(top: string): void {
    mkdirSync(top);
    const name = "d".repeat(100);
    const chain = [HeldFolder.open(top)];
    for (let depth = 0; depth < 100; depth++) {
      mkdirSync(chain[depth]?.at(name) ?? "");
      chain.push(chain[depth]?.folder(name) ?? null);
    }
    for (const folder of chain) folder?.[Symbol.dispose]();
  }

  it("walk stops at its limits on the number of entries and on the depth of folders", async () => {
    const root = await temporaryRoot();
    mkdirSync(root);
    for (let index = 0; index < 50; index++) writeFileSync(join(root, `f${index}`), "x");
    deep(join(root, "deep"));
    using folder = HeldFolder.open(root);
    if (folder === null) throw new Error("there is no folder");
    const few: Budget = { left: 20 };
    expect([...walk(folder, few)]).toHaveLength(20);
    expect(few.isCut).toBe(true);
    const many: Budget = { left: 10_000 };
    expect([...walk(folder, many)]).toHaveLength(50);
    expect(many.isCut).toBe(true);
    await removeTree(root, { left: 10_000 });
  });

  it("removeTree removes a large and deep tree over several calls if each call may remove only a few entries", async () => {
    const root = await temporaryRoot();
    deep(root);
    for (let index = 0; index < 100; index++) writeFileSync(join(root, `f${index}`), "x");
    let goes = 1;
    while (!(await removeTree(root, { left: 150 }))) goes += 1;
    expect(existsSync(root)).toBe(false);
    expect(goes).toBeGreaterThan(1);
  });

  it("a HeldFolder still refers to the folder that it opened after a link has taken the folder's place", async () => {
    const root = await temporaryRoot();
    mkdirSync(join(root, "a"), { recursive: true });
    using folder = HeldFolder.open(join(root, "a"));
    renameSync(join(root, "a"), join(root, "b"));
    symlinkSync("/", join(root, "a"));
    expect(folder?.realPath.endsWith("/b")).toBe(true);
    expect(folder?.entries(10)).toEqual({ entries: [], more: false });
  });
});

describe("a home whose agent has removed the rights of its folders", () => {
  // Root ignores these rights.
  const isRoot = process.geteuid?.() === 0;
  beforeEach(() => {
    if (!isRoot) return;
    process.seteuid?.(65534);
    vi.spyOn(process, "getuid").mockReturnValue(65534);
  });
  afterEach(() => {
    vi.restoreAllMocks();
    if (isRoot) process.seteuid?.(0);
  });

  /** Makes folders without some of the rights that are needed to list, to enter and to change them. */
  function lock(folder: string): void {
    const below = [0o000, 0o100, 0o200, 0o400, 0o500].map((mode) => ({
      path: join(folder, `d${mode}`, "below"),
      mode,
    }));
    for (const { path } of below) {
      mkdirSync(path, { recursive: true });
      writeFileSync(join(path, "file"), "");
    }
    makeOld(folder, OLD_MS);
    for (const { path, mode } of below) for (const locked of [path, dirname(path)]) chmodSync(locked, mode);
  }

  it("removeTree removes folders that this account may neither read nor enter nor change", async () => {
    const root = await temporaryRoot();
    mkdirSync(root);
    lock(root);
    chmodSync(root, 0);
    expect(await removeTree(root, { left: 1_000 })).toBe(true);
    expect(existsSync(root)).toBe(false);
  });

  it("removeTree changes the rights of no folder to which a link leads", async () => {
    const root = await temporaryRoot();
    mkdirSync(join(root, "outside"), { recursive: true });
    mkdirSync(join(root, "tree"));
    chmodSync(join(root, "outside"), 0o500);
    symlinkSync(join(root, "outside"), join(root, "tree", "link"));
    await removeTree(join(root, "tree"), { left: 1_000 });
    expect(statSync(join(root, "outside")).mode & 0o777).toBe(0o500);
  });

  it.each([0o000, 0o400, 0o500])(
    "gc deletes a session with locked folders whose own folder has the mode %d",
    async (mode) => {
      const state = await twoUsers();
      const folder = state.plant("alice-1", "due");
      lock(folder);
      chmodSync(folder, mode);
      expect((await state.gc()).deleted.map(({ id }) => id)).toEqual(["due"]);
      expect(existsSync(folder)).toBe(false);
      isUnharmed(state);
    },
  );

  it("a session is found and measured although the agent has removed the rights of its folder and of the home", async () => {
    const state = await twoUsers();
    const folder = state.plant("alice-1", "s");
    const home = state.home("alice-1");
    for (const path of [folder, state.statePath("alice-1"), home]) chmodSync(path, 0);
    expect(readSessionFolder(home, "s")?.hasHistory).toBe(true);
    expect(sessionBytes(home, "s")).toBeGreaterThan(0);
  });
});

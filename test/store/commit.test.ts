import { readdir, rm } from "node:fs/promises";
import { basename, join } from "node:path";
import { describe, expect, it } from "vitest";
import type { CommitStep } from "../../src/store/file/commit.js";
import { type FileStore, openFileStore } from "../../src/store/file/file-store.js";
import { serverRecord, sessionRecord } from "../fixtures/store-records.js";
import { temporaryRoot } from "../fixtures/store-root.js";

const STEPS: CommitStep[] = ["read", "checked", "marked", "written", "linked"];
/** More than the registry keeps, so that the number a sleeper aims at is taken and pruned before it wakes up. */
const MANY = 40;

/** A store whose first commit from now on falls asleep after `step`, for as long as `meanwhile` runs. */
function sleeper(root: string, step: CommitStep, meanwhile: () => Promise<void>): FileStore {
  let slept = false;
  return openFileStore(root, {
    onStep: async (reached) => {
      if (slept || reached !== step) return;
      slept = true;
      // The polite lock would cost each of the others its wait. It decides nothing, so it may as well be gone.
      await rm(join(root, "registry.lock"), { recursive: true, force: true });
      await meanwhile();
    },
  });
}

/** Holds up whoever waits there, the first time and until it is opened. */
function gate() {
  let reach = (): void => undefined;
  let open = (): void => undefined;
  const reached = new Promise<void>((resolve) => {
    reach = resolve;
  });
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  const wait = (): Promise<void> => {
    reach();
    return opened;
  };
  return { reached, wait, open: () => open() };
}

async function addServers(store: FileStore, prefix: string, count: number): Promise<string[]> {
  const ids = Array.from({ length: count }, (_, index) => `${prefix}${index}`);
  // One after the other: together they would share a commit.
  for (const id of ids)
    await store.updateRegistry((draft) => void Object.assign(draft.servers, { [id]: serverRecord(id) }));
  return ids;
}

async function serverIds(root: string): Promise<string[]> {
  return Object.keys((await openFileStore(root).readRegistry()).servers).toSorted();
}

describe("a writer of the registry that is suspended", () => {
  describe.each([1, 2, 15, 16, 17, MANY])("while others commit %d times", (commits) => {
    it.each(STEPS)("after it was %s: its update is there once, and so are theirs", async (step) => {
      const root = await temporaryRoot();
      const others = openFileStore(root);
      const ids = await addServers(others, "before", 1);
      let runs = 0;
      const late = sleeper(root, step, async () => void ids.push(...(await addServers(others, "meanwhile", commits))));
      await late.updateRegistry((draft) => {
        runs++;
        expect(draft.servers.late).toBeUndefined();
        draft.servers.late = serverRecord("late");
      });
      expect(await serverIds(root)).toEqual([...ids, "late"].toSorted());
      // Linked first and found out late: that was the commit. In every other case its first attempt came to nothing.
      expect(runs).toBe(step === "linked" ? 1 : 2);
    });
  });

  it("and was never the head is not taken for it by one that slept as long", async () => {
    const root = await temporaryRoot();
    const others = openFileStore(root);
    const ids = await addServers(others, "before", 1);
    const written = gate();
    const linked = gate();
    const read = gate();
    const late = openFileStore(root, {
      onStep: async (step) => {
        if (step === "written") await written.wait();
        if (step === "linked") await linked.wait();
      },
    });
    const reader = openFileStore(root, { onStep: async (step) => void (step === "read" && (await read.wait())) });

    // The late one is about to link revision 2, the reader has read another revision 2, and then that one is pruned.
    const lateUpdate = addServers(late, "late", 1);
    await written.reached;
    ids.push(...(await addServers(others, "first", 1)));
    const readerUpdate = addServers(reader, "reader", 1);
    await read.reached;
    await rm(join(root, "registry.lock"), { recursive: true, force: true });
    ids.push(...(await addServers(others, "meanwhile", MANY)));

    // So now the late one's file stands under the number that the reader wants to build on.
    written.open();
    await linked.reached;
    read.open();
    ids.push(...(await readerUpdate));
    linked.open();
    ids.push(...(await lateUpdate));
    expect(await serverIds(root)).toEqual(ids.toSorted());
  });

  it("makes the first commit of all once, also when another one is first", async () => {
    const root = await temporaryRoot();
    const others = openFileStore(root);
    const late = sleeper(root, "written", async () => void (await addServers(others, "other", MANY)));
    await addServers(late, "late", 1);
    expect(await serverIds(root)).toHaveLength(MANY + 1);
    expect(await serverIds(root)).toContain("late0");
  });

  it("does not leave its late link behind, nor a temp file", async () => {
    const root = await temporaryRoot();
    const others = openFileStore(root);
    await addServers(others, "before", 1);
    const late = sleeper(root, "written", async () => void (await addServers(others, "meanwhile", MANY)));
    await addServers(late, "late", 1);
    const names = (await readdir(join(root, "registry"))).toSorted();
    expect(names).toHaveLength(16);
    expect(names[0]).toBe("0000000000000027.json");
    expect(names.at(-1)).toBe("0000000000000042.json");
  });

  it("keeps registry.json from falling behind for good", async () => {
    const root = await temporaryRoot();
    const others = openFileStore(root);
    await addServers(others, "before", 1);
    // Linked, so its copy is published after all those of the others, and is older than they are.
    const late = sleeper(root, "linked", async () => void (await addServers(others, "meanwhile", 3)));
    await addServers(late, "late", 1);
    const { readPublished } = await import("../../src/store/file/published.js");
    expect(readPublished(root)).toMatchObject({ kind: "good", rev: 5 });
  });

  it("gives up with FLEET_STATE_BUSY when others are always first", async () => {
    const root = await temporaryRoot();
    const others = openFileStore(root);
    await addServers(others, "before", 1);
    let round = 0;
    const unlucky = openFileStore(root, {
      deadlineMs: 150,
      onStep: async (step) => void (step === "marked" && (await addServers(others, `round${round++}-`, 1))),
    });
    const update = unlucky.updateRegistry((draft) => void delete draft.servers.before0);
    await expect(update).rejects.toMatchObject({ code: "FLEET_STATE_BUSY", exit: 6 });
    expect(await serverIds(root)).toHaveLength(round + 1);
    expect(await serverIds(root)).toContain("before0");
  });
});

describe("a writer of a session record that is suspended", () => {
  const touch = (store: FileStore) => store.updateSession("a", (draft) => ++draft.turns);

  describe.each([1, 2, 3, MANY])("while others commit %d times", (commits) => {
    it.each(STEPS)("after it was %s: every update counts once", async (step) => {
      const root = await temporaryRoot();
      const others = openFileStore(root);
      await others.createSession(sessionRecord("a"));
      const late = sleeper(root, step, async () => {
        for (let commit = 0; commit < commits; commit++) await touch(others);
      });
      await touch(late);
      expect((await others.readSession("a"))?.turns).toBe(commits + 1);
    });
  });

  it.each(STEPS)("after it was %s, and deleted: there is no record, and it is not brought back", async (step) => {
    const root = await temporaryRoot();
    const others = openFileStore(root);
    await others.createSession(sessionRecord("a"));
    const late = sleeper(root, step, async () => void (await others.deleteSession("a")));
    await expect(touch(late)).rejects.toMatchObject({ code: "FLEET_SESSION_NOT_FOUND" });
    expect(await readdir(join(root, "sessions"))).toEqual([]);
    expect((await readdir(root, { recursive: true })).filter((path) => basename(path) === "a")).toEqual([]);
  });

  it.each(STEPS)("after it was %s, and created again: nothing of the former life returns", async (step) => {
    const root = await temporaryRoot();
    const others = openFileStore(root);
    await others.createSession(sessionRecord("a", { purpose: "former life", turns: 100 }));
    const late = sleeper(root, step, async () => {
      await others.deleteSession("a");
      await others.createSession(sessionRecord("a", { owner: "bob" }));
    });
    expect(await touch(late)).toBe(1);
    expect(await others.readSession("a")).toEqual(sessionRecord("a", { owner: "bob", turns: 1 }));
    expect(await touch(others)).toBe(2);
  });
});

describe("concurrent updates of one instance", () => {
  it("share a couple of commits", async () => {
    const root = await temporaryRoot();
    const store = openFileStore(root);
    await addServers(store, "before", 1);
    await Promise.all(Array.from({ length: 50 }, (_, index) => addServers(store, `s${index}-`, 1)));
    expect(await serverIds(root)).toHaveLength(51);
    const revisions = (await readdir(join(root, "registry"))).toSorted();
    expect(Number.parseInt(revisions.at(-1) ?? "", 10)).toBeLessThanOrEqual(4);
  });

  it("write nothing when nothing changed", async () => {
    const root = await temporaryRoot();
    const store = openFileStore(root);
    await addServers(store, "s", 1);
    await store.updateRegistry((draft) => void (draft.servers.s0 && { ...draft.servers.s0 }));
    expect(await readdir(join(root, "registry"))).toEqual(["0000000000000001.json"]);
  });
});

describe("a deletion of many records that is suspended", () => {
  const unchanged = ({ turns }: { turns: number }) => turns === 0;

  it("after it was read: a change that came first is seen, and kept", async () => {
    const root = await temporaryRoot();
    const others = openFileStore(root);
    await others.createSession(sessionRecord("a"));
    const store = sleeper(root, "read", async () => void (await others.updateSession("a", (draft) => ++draft.turns)));
    expect(await store.deleteSessions(["a"], unchanged)).toEqual([]);
    expect(await others.readSession("a")).toMatchObject({ turns: 1 });
  });

  it("after its tombstone stood: a change that comes later finds no record", async () => {
    const root = await temporaryRoot();
    const others = openFileStore(root);
    await others.createSession(sessionRecord("a"));
    const store = sleeper(root, "linked", async () => {
      await expect(others.updateSession("a", (draft) => ++draft.turns)).rejects.toMatchObject({
        code: "FLEET_SESSION_NOT_FOUND",
      });
      expect(await others.readSession("a")).toBeNull();
      expect(await others.listSessions()).toEqual([]);
    });
    expect(await store.deleteSessions(["a"], unchanged)).toEqual(["a"]);
    expect(await readdir(join(root, "sessions"))).toEqual([]);
  });

  it("after it was read: changes that took and pruned its number are seen, and kept", async () => {
    const root = await temporaryRoot();
    const others = openFileStore(root);
    await others.createSession(sessionRecord("a"));
    const store = sleeper(root, "read", async () => {
      for (let turn = 0; turn < MANY; turn++) await others.updateSession("a", (draft) => ++draft.turns);
    });
    expect(await store.deleteSessions(["a"], unchanged)).toEqual([]);
    expect(await others.updateSession("a", (draft) => ++draft.turns)).toBe(MANY + 1);
    expect(await store.readSession("a")).toMatchObject({ turns: MANY + 1 });
  });

  it.each(["read", "linked"] as const)(
    "after it was %s: the record that was created anew meanwhile stays",
    async (step) => {
      const root = await temporaryRoot();
      const others = openFileStore(root);
      await others.createSession(sessionRecord("a"));
      const store = sleeper(root, step, async () => {
        await others.deleteSession("a");
        await others.createSession(sessionRecord("a", { turns: 5 }));
      });
      await store.deleteSessions(["a"], unchanged);
      expect(await others.readSession("a")).toEqual(sessionRecord("a", { turns: 5 }));
    },
  );

  it("was killed after its tombstone stood: the id can be used again", async () => {
    const root = await temporaryRoot();
    const others = openFileStore(root);
    await others.createSession(sessionRecord("a"));
    const store = sleeper(root, "linked", async () => {
      throw new Error("killed");
    });
    await expect(store.deleteSessions(["a"], unchanged)).rejects.toThrow("killed");
    expect(await others.readSession("a")).toBeNull();
    await others.createSession(sessionRecord("a", { owner: "bob" }));
    expect(await others.readSession("a")).toMatchObject({ owner: "bob" });
  });
});

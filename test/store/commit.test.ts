import { createHook } from "node:async_hooks";
import { readdir, rm } from "node:fs/promises";
import { basename, join } from "node:path";
import { describe, expect, it } from "vitest";
import type { CommitStep } from "../../src/store/file/commit.js";
import { type FileStore, openFileStore } from "../../src/store/file/file-store.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const STEPS: [string, CommitStep][] = [
  ["reading the newest revision", "read"],
  ["checking that its revision is still the newest", "checked"],
  ["making the newest revision read-only", "accepted"],
  ["writing a temporary file", "written"],
  ["linking its own revision", "linked"],
];
/** More commits than the registry keeps revisions. So they use and prune the number that a suspended writer has. */
const MANY = 40;

/** A store whose next commit is suspended after `step` until `work` has run. */
function sleeper(root: string, step: CommitStep, work: () => Promise<void>): FileStore {
  let slept = false;
  return openFileStore(root, {
    onStep: async (reached) => {
      if (slept || reached !== step) return;
      slept = true;
      // Delete the registry's lock, because each other writer would wait for it. Correctness does not depend on the lock.
      await rm(join(root, "registry.lock"), { recursive: true, force: true });
      await work();
    },
  });
}

/** Callers of `wait` wait until `open` is called. `reached` resolves when the first caller waits. */
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
  // One after another, because concurrent updates would share a commit.
  for (const id of ids)
    await store.registry.update((draft) => void Object.assign(draft.servers, { [id]: serverRecord(id) }));
  return ids;
}

async function serverIds(root: string): Promise<string[]> {
  return Object.keys((await openFileStore(root).registry.read()).servers).toSorted();
}

describe("the registry, when a writer is suspended in its commit", () => {
  describe.each([1, 2, 15, 16, 17, MANY])("while others commit %d times", (commits) => {
    it.each(STEPS)("a registry update applies exactly once when its writer is suspended after %s", async (_, step) => {
      const root = await temporaryRoot();
      const others = openFileStore(root);
      const ids = await addServers(others, "before", 1);
      let runs = 0;
      const late = sleeper(root, step, async () => void ids.push(...(await addServers(others, "meanwhile", commits))));
      await late.registry.update((draft) => {
        runs++;
        expect(draft.servers.late).toBeUndefined();
        draft.servers.late = serverRecord("late");
      });
      expect(await serverIds(root)).toEqual([...ids, "late"].toSorted());
      // A writer that is suspended after "linked" has already committed. After any other step, the commits of the
      // others make its attempt fail, and the change runs again.
      expect(runs).toBe(step === "linked" ? 1 : 2);
    });
  });

  it("a resumed writer never builds on a revision that another resumed writer linked too late", async () => {
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

    // `late` has written its revision 2, and is suspended before it links it. Then `others` link another revision 2,
    // and `reader` reads that one. Many later commits prune it, so the number 2 is free again.
    const lateUpdate = addServers(late, "late", 1);
    await written.reached;
    ids.push(...(await addServers(others, "first", 1)));
    const readerUpdate = addServers(reader, "reader", 1);
    await read.reached;
    await rm(join(root, "registry.lock"), { recursive: true, force: true });
    ids.push(...(await addServers(others, "meanwhile", MANY)));

    // Now `late` links its revision 2. This is the number on which `reader` wants to build.
    written.open();
    await linked.reached;
    read.open();
    ids.push(...(await readerUpdate));
    linked.open();
    ids.push(...(await lateUpdate));
    expect(await serverIds(root)).toEqual(ids.toSorted());
  });

  it("the registry keeps the update of a writer that was suspended in the very first commit", async () => {
    const root = await temporaryRoot();
    const others = openFileStore(root);
    const late = sleeper(root, "written", async () => void (await addServers(others, "other", MANY)));
    await addServers(late, "late", 1);
    expect(await serverIds(root)).toHaveLength(MANY + 1);
    expect(await serverIds(root)).toContain("late0");
  });

  it("a suspended registry writer deletes its outdated revision and its temporary file when it resumes", async () => {
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

  it("registry.json gets the newest registry even if a suspended writer has put an older one there", async () => {
    const root = await temporaryRoot();
    const others = openFileStore(root);
    await addServers(others, "before", 1);
    // The suspended writer has linked its revision. It writes this older revision to registry.json after all others.
    const late = sleeper(root, "linked", async () => void (await addServers(others, "meanwhile", 3)));
    await addServers(late, "late", 1);
    const { publishedPath, readPublished } = await import("../../src/store/file/commit.js");
    expect(readPublished(publishedPath(root))).toMatchObject({ kind: "good", rev: 5 });
  });

  it("a registry update rejects with FLEET_STATE_BUSY when other writers keep committing first", async () => {
    const root = await temporaryRoot();
    const others = openFileStore(root);
    await addServers(others, "before", 1);
    let round = 0;
    const unlucky = openFileStore(root, {
      deadlineMs: 150,
      onStep: async (step) => void (step === "accepted" && (await addServers(others, `round${round++}-`, 1))),
    });
    const update = unlucky.registry.update((draft) => void delete draft.servers.before0);
    await expect(update).rejects.toMatchObject({ code: "FLEET_STATE_BUSY", exit: 6 });
    expect(await serverIds(root)).toHaveLength(round + 1);
    expect(await serverIds(root)).toContain("before0");
  });
});

describe("a session record, when a writer is suspended in its commit", () => {
  const touch = (store: FileStore) => store.sessions.update("a", (draft) => ++draft.turns);

  describe.each([1, 2, 3, MANY])("while others commit %d times", (commits) => {
    it.each(STEPS)("every update of a session applies once when a writer is suspended after %s", async (_, step) => {
      const root = await temporaryRoot();
      const others = openFileStore(root);
      await others.sessions.create(sessionRecord("a"));
      const late = sleeper(root, step, async () => {
        for (let commit = 0; commit < commits; commit++) await touch(others);
      });
      await touch(late);
      expect((await others.sessions.read("a"))?.turns).toBe(commits + 1);
    });
  });

  it.each(STEPS)(
    "a deleted session does not come back when a writer of its record was suspended after %s",
    async (_, step) => {
      const root = await temporaryRoot();
      const others = openFileStore(root);
      await others.sessions.create(sessionRecord("a"));
      const late = sleeper(root, step, async () => void (await others.sessions.delete("a")));
      await expect(touch(late)).rejects.toMatchObject({ code: "FLEET_SESSION_NOT_FOUND" });
      expect(await readdir(join(root, "sessions"))).toEqual([]);
      expect((await readdir(root, { recursive: true })).filter((path) => basename(path) === "a")).toEqual([]);
    },
  );

  it.each(STEPS)(
    "a re-created session contains no old data when a writer of the old record was suspended after %s",
    async (_, step) => {
      const root = await temporaryRoot();
      const others = openFileStore(root);
      await others.sessions.create(sessionRecord("a", { purpose: "former life", turns: 100 }));
      const late = sleeper(root, step, async () => {
        await others.sessions.delete("a");
        await others.sessions.create(sessionRecord("a", { owner: "bob" }));
      });
      expect(await touch(late)).toBe(1);
      expect(await others.sessions.read("a")).toEqual(sessionRecord("a", { owner: "bob", turns: 1 }));
      expect(await touch(others)).toBe(2);
    },
  );
});

describe("the file store, with concurrent updates of one instance,", () => {
  it("one file store writes 50 concurrent registry updates in a few commits", async () => {
    const root = await temporaryRoot();
    const store = openFileStore(root);
    await addServers(store, "before", 1);
    await Promise.all(Array.from({ length: 50 }, (_, index) => addServers(store, `s${index}-`, 1)));
    expect(await serverIds(root)).toHaveLength(51);
    const revisions = (await readdir(join(root, "registry"))).toSorted();
    expect(Number.parseInt(revisions.at(-1) ?? "", 10)).toBeLessThanOrEqual(4);
  });

  it("a registry update that changes nothing writes no new revision", async () => {
    const root = await temporaryRoot();
    const store = openFileStore(root);
    await addServers(store, "s", 1);
    await store.registry.update((draft) => void (draft.servers.s0 && { ...draft.servers.s0 }));
    expect(await readdir(join(root, "registry"))).toEqual(["0000000000000001.json"]);
  });
});

describe("deleteMany() of sessions, when it is suspended", () => {
  const unchanged = ({ turns }: { turns: number }) => turns === 0;

  it("deleteMany() keeps a session whose record another process changes after deleteMany() has read it", async () => {
    const root = await temporaryRoot();
    const others = openFileStore(root);
    await others.sessions.create(sessionRecord("a"));
    const store = sleeper(root, "read", async () => void (await others.sessions.update("a", (draft) => ++draft.turns)));
    expect(await store.sessions.deleteMany(["a"], unchanged)).toEqual([]);
    expect(await others.sessions.read("a")).toMatchObject({ turns: 1 });
  });

  it("a session update is rejected after deleteMany() has linked a tombstone for the session", async () => {
    const root = await temporaryRoot();
    const others = openFileStore(root);
    await others.sessions.create(sessionRecord("a"));
    const store = sleeper(root, "linked", async () => {
      await expect(others.sessions.update("a", (draft) => ++draft.turns)).rejects.toMatchObject({
        code: "FLEET_SESSION_NOT_FOUND",
      });
      expect(await others.sessions.read("a")).toBeNull();
      expect(await others.sessions.list()).toEqual([]);
    });
    expect(await store.sessions.deleteMany(["a"], unchanged)).toEqual(["a"]);
    expect(await readdir(join(root, "sessions"))).toEqual([]);
  });

  it("deleteMany() keeps a session if other updates use the number of the tombstone during the call", async () => {
    const root = await temporaryRoot();
    const others = openFileStore(root);
    await others.sessions.create(sessionRecord("a"));
    const store = sleeper(root, "read", async () => {
      for (let turn = 0; turn < MANY; turn++) await others.sessions.update("a", (draft) => ++draft.turns);
    });
    expect(await store.sessions.deleteMany(["a"], unchanged)).toEqual([]);
    expect(await others.sessions.update("a", (draft) => ++draft.turns)).toBe(MANY + 1);
    expect(await store.sessions.read("a")).toMatchObject({ turns: MANY + 1 });
  });

  it.each<[string, CommitStep]>([
    ["reading the record", "read"],
    ["linking its tombstone", "linked"],
  ])("deleteMany() keeps a session that was created again while the call was suspended after %s", async (_, step) => {
    const root = await temporaryRoot();
    const others = openFileStore(root);
    await others.sessions.create(sessionRecord("a"));
    const store = sleeper(root, step, async () => {
      await others.sessions.delete("a");
      await others.sessions.create(sessionRecord("a", { turns: 5 }));
    });
    await store.sessions.deleteMany(["a"], unchanged);
    expect(await others.sessions.read("a")).toEqual(sessionRecord("a", { turns: 5 }));
  });

  it("a session id can be used again after deleteMany() was killed right after linking the tombstone", async () => {
    const root = await temporaryRoot();
    const others = openFileStore(root);
    await others.sessions.create(sessionRecord("a"));
    const store = sleeper(root, "linked", async () => {
      throw new Error("killed");
    });
    await expect(store.sessions.deleteMany(["a"], unchanged)).rejects.toThrow("killed");
    expect(await others.sessions.read("a")).toBeNull();
    await others.sessions.create(sessionRecord("a", { owner: "bob" }));
    expect(await others.sessions.read("a")).toMatchObject({ owner: "bob" });
  });
});

it("a commit uses Node's thread pool only for its two disk syncs", async () => {
  const store = openFileStore(await temporaryRoot());
  await store.sessions.create(sessionRecord("a"));
  const addTurn = async () =>
    await store.sessions.update("a", (draft) => {
      draft.turns++;
    });
  await addTurn();
  const given: string[] = [];
  const hook = createHook({ init: (_id, type) => void given.push(type) }).enable();
  await addTurn();
  hook.disable();
  expect(given.filter((type) => type.startsWith("FSREQ"))).toHaveLength(2);
});

import { readdir, rm } from "node:fs/promises";
import { basename, join } from "node:path";
import { describe, expect, it } from "vitest";
import type { CommitStep } from "../../src/store/file/commit.js";
import { type FileStore, openStore } from "../../src/store/store.js";
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
  return openStore("file", root, {
    onStep: async (reached) => {
      if (slept || reached !== step) return;
      slept = true;
      // Delete the registry's lock, because each other writer would wait for it. Correctness does not depend on the lock.
      await rm(join(root, "registry.lock"), { recursive: true, force: true });
      await work();
    },
  });
}

async function addServers(store: FileStore, prefix: string, count: number): Promise<string[]> {
  const ids = Array.from({ length: count }, (_, index) => `${prefix}${index}`);
  // One after another, because concurrent updates would share a commit.
  for (const id of ids)
    await store.registry.update((draft) => void Object.assign(draft.servers, { [id]: serverRecord(id) }));
  return ids;
}

async function serverIds(root: string): Promise<string[]> {
  return Object.keys((await openStore("file", root).registry.read()).servers).toSorted();
}

describe("the registry, when a writer is suspended in its commit", () => {
  describe.each([1, 2, 15, 16, 17, MANY])("while others commit %d times", (commits) => {
    it.each(STEPS)("a registry update applies exactly once when its writer is suspended after %s", async (_, step) => {
      const root = await temporaryRoot();
      const others = openStore("file", root);
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

  it("a registry update rejects with FLEET_STATE_BUSY when other writers keep committing first", async () => {
    const root = await temporaryRoot();
    const others = openStore("file", root);
    await addServers(others, "before", 1);
    let round = 0;
    const unlucky = openStore("file", root, {
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

  it.each(STEPS)(
    "a deleted session does not come back when a writer of its record was suspended after %s",
    async (_, step) => {
      const root = await temporaryRoot();
      const others = openStore("file", root);
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
      const others = openStore("file", root);
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

import { expect, it } from "vitest";
import { copyContents, isEmpty, readContents } from "../../src/store/copy.js";
import { openFileStore } from "../../src/store/file/file-store.js";
import type { Store } from "../../src/store/store.js";
import { serverRecord, sessionRecord } from "../fixtures/store-records.js";
import { temporaryRoot } from "../fixtures/store-root.js";

const NEVER = new AbortController().signal;
const SESSIONS = 120;

async function filled(): Promise<Store> {
  const store = openFileStore(await temporaryRoot());
  await store.updateRegistry((draft) => {
    draft.servers.s1 = serverRecord("s1");
    draft.placed = 7;
  });
  for (let index = 0; index < SESSIONS; index++) await store.createSession(sessionRecord(`a${index}`));
  return store;
}

/** A store in which `over` replaces some of the calls. */
function but(store: Store, over: Partial<Store>): Store {
  return new Proxy(store, {
    get: (target, name) => {
      const value: unknown = Reflect.get(over, name) ?? Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

it("copies everything from one store to another, and changes nothing in the source", async () => {
  const [from, to] = [await filled(), openFileStore(await temporaryRoot())];
  const contents = await readContents(from);
  expect([isEmpty(contents), isEmpty(await readContents(to))]).toEqual([false, true]);
  await copyContents(contents, from, to, NEVER);
  expect(await readContents(to)).toEqual(contents);
  expect(await readContents(from)).toEqual(contents);
});

it.each<[string, RegExp, (from: Store, to: Store, stop: AbortController) => [Store, Store]]>([
  [
    "the source changes during the copy",
    /changed while it was being copied/,
    (from, to) => [
      but(from, {
        readRegistry: async () => {
          await from.updateSession("a1", (draft) => ++draft.turns);
          return await from.readRegistry();
        },
      }),
      to,
    ],
  ],
  [
    "the target fails in the middle of the copy",
    /no room/,
    (from, to) => [
      from,
      but(to, {
        createSession: async (record) => {
          if (record.id === "a99") throw new Error("no room");
          await to.createSession(record);
        },
      }),
    ],
  ],
  [
    "somebody else writes to the target",
    /does not match the source/,
    (from, to) => [
      from,
      but(to, {
        updateRegistry: async (change) => {
          if ((await to.readSession("others")) === null) await to.createSession(sessionRecord("others"));
          return await to.updateRegistry(change);
        },
      }),
    ],
  ],
  [
    "the copy is interrupted",
    /stopped by hand/,
    (from, to, stop) => [
      from,
      but(to, {
        createSession: async (record) => {
          await to.createSession(record);
          stop.abort(new Error("stopped by hand"));
        },
      }),
    ],
  ],
])("deletes the records that it copied from the target store when %s", async (_, message, meddle) => {
  const [source, target] = [await filled(), openFileStore(await temporaryRoot())];
  const contents = await readContents(source);
  const stop = new AbortController();
  const [from, to] = meddle(source, target, stop);
  await expect(copyContents(contents, from, to, stop.signal)).rejects.toThrow(message);
  const { registry, sessions } = await readContents(target);
  expect(registry).toEqual({ servers: {} });
  expect(sessions.map(({ id }) => id).filter((id) => id !== "others")).toEqual([]);
});

it("leaves a session in the target store alone that has the same id as one in the source, and refuses to copy", async () => {
  const [from, to] = [await filled(), openFileStore(await temporaryRoot())];
  const contents = await readContents(from);
  const theirs = sessionRecord("a60", { owner: "bob" });
  await to.createSession(theirs);
  await expect(copyContents(contents, from, to, NEVER)).rejects.toMatchObject({ code: "FLEET_SESSION_EXISTS" });
  expect((await readContents(to)).sessions).toEqual([theirs]);
});

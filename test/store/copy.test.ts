import { expect, it } from "vitest";
import type { Progress } from "../../src/base/progress.js";
import { copyContents, isEmpty, readContents, sessionsIn } from "../../src/store/copy.js";
import { LIMITS } from "../../src/store/limits.js";
import type { Changes } from "../../src/store/rows.js";
import { openStore, type Store } from "../../src/store/store.js";
import { KEYED_TURNS } from "../../src/store/tokens.js";
import { altered } from "../fixtures/store/altered-store.js";
import { keyedTurn, serverRecord, sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const NEVER = new AbortController().signal;
/** More sessions than are copied at once. */
const SESSIONS = 60;

const SUSPENDED = { since: "2026-01-01T00:00:00.000Z", reason: null };
const KEYED = ["k1", "k2"].map((key) => keyedTurn("ann", key));

async function filled(): Promise<Store> {
  const store = openStore("file", await temporaryRoot());
  await store.registry.update((draft) => {
    draft.servers.s1 = serverRecord("s1");
    draft.placed = 7;
  });
  await store.limits.set("ann", () => ({ limits: { sessions: 3, tokensPerDay: null }, suspended: SUSPENDED }));
  await store.limits.noteGroups("bob", ["interns"]);
  for (const turn of KEYED.toReversed()) await store.keyedTurns.create(turn);
  const ids = Array.from({ length: SESSIONS }, (_, index) => `a${index}`);
  await Promise.all(ids.map((id) => store.sessions.create(sessionRecord(id))));
  return store;
}

it("copyContents copies a whole store, reports its progress, and leaves the source unchanged", async () => {
  const [from, to] = [await filled(), openStore("file", await temporaryRoot())];
  const contents = await readContents(from);
  expect([isEmpty(contents), isEmpty(await readContents(to))]).toEqual([false, true]);
  const seen: Progress[] = [];
  await copyContents(contents, from, to, { signal: NEVER, onProgress: (progress) => void seen.push(progress) });
  const total = SESSIONS + 2 + KEYED.length;
  expect(seen).toEqual([50, 60, 62, 64].map((done) => ({ done, total, turns: [] })));
  expect(await readContents(to)).toEqual(contents);
  expect([...(contents.records.get(LIMITS)?.values() ?? [])]).toEqual([
    { user: "ann", limits: { sessions: 3, tokensPerDay: null }, groups: [], suspended: SUSPENDED },
    { user: "bob", limits: {}, groups: ["interns"] },
  ]);
  expect(new Set(contents.records.get(KEYED_TURNS)?.values())).toEqual(new Set(KEYED));
  expect(await readContents(from)).toEqual(contents);
});

it.each<[string, RegExp, (from: Store, to: Store, stop: AbortController) => [Store, Store]]>([
  [
    "the source changes during the copy",
    /changed while it was being copied/,
    (from, to) => [
      altered(from, {
        registry: {
          read: async () => {
            await from.sessions.update("a1", (draft) => ++draft.turns);
            return await from.registry.read();
          },
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
      altered(to, {
        rows: {
          commit: async (changes: Changes) => {
            if (changes.some(({ id }) => id === "a9")) throw new Error("no room");
            return await to.rows.commit(changes);
          },
        },
      }),
    ],
  ],
  [
    "somebody else writes to the target",
    /does not match the source/,
    (from, to) => [
      from,
      altered(to, {
        registry: {
          update: async (change) => {
            if ((await to.sessions.read("others")) === null) await to.sessions.create(sessionRecord("others"));
            return await to.registry.update(change);
          },
        },
      }),
    ],
  ],
  [
    "the copy is interrupted",
    /stopped by hand/,
    (from, to, stop) => [
      from,
      altered(to, {
        rows: {
          commit: async (changes: Changes) => {
            stop.abort(new Error("stopped by hand"));
            return await to.rows.commit(changes);
          },
        },
      }),
    ],
  ],
])("copyContents deletes its copies from the target store when %s", async (_, message, meddle) => {
  const [source, target] = [await filled(), openStore("file", await temporaryRoot())];
  const contents = await readContents(source);
  const stop = new AbortController();
  const [from, to] = meddle(source, target, stop);
  await expect(copyContents(contents, from, to, stop)).rejects.toThrow(message);
  const { registry, records } = await readContents(target);
  expect(registry).toEqual({ servers: {} });
  const left = [...records.values()].flatMap((ofKind) => [...ofKind.keys()]);
  expect(left.filter((id) => id !== "others")).toEqual([]);
});

it("copyContents refuses to copy if the target has a session with the same id, and keeps that session", async () => {
  const [from, to] = [await filled(), openStore("file", await temporaryRoot())];
  const contents = await readContents(from);
  const theirs = sessionRecord("a30", { owner: "bob" });
  await to.sessions.create(theirs);
  await expect(copyContents(contents, from, to, { signal: NEVER })).rejects.toMatchObject({
    code: "FLEET_STATE_BUSY",
  });
  expect(sessionsIn(await readContents(to))).toEqual([theirs]);
});

import { expect, it } from "vitest";
import { releaseSessionsOf } from "../../src/sessions/memory/release.js";
import { openFileStore } from "../../src/store/file/file-store.js";
import { noEvents } from "../fixtures/no-events.js";
import { sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

it("releaseSessionsOf stops waiting for sessions in use when its caller has hung up", async () => {
  const store = openFileStore(await temporaryRoot());
  for (const id of ["free", "held"]) await store.sessions.create(sessionRecord(id));
  const lease = { sessionId: "held", holder: "alice", token: "t", ttlMs: 60_000, placeMs: 1_000 };
  expect(await store.leases.acquire(lease)).toMatchObject({ granted: true });
  const stop = new AbortController();
  const waiting = releaseSessionsOf("alice", 3_600_000, {
    store,
    events: noEvents,
    answerMs: 1_000,
    signal: stop.signal,
  });
  const reason = new Error("the other host has hung up");
  setImmediate(() => stop.abort(reason));
  await expect(waiting).rejects.toBe(reason);
  expect(await store.sessions.read("free")).toMatchObject({ released: true });
  // Now nobody uses the session.
  await store.leases.release("held", "t");
  const again = await releaseSessionsOf("alice", 0, { store, events: noEvents, answerMs: 1_000 });
  expect(again, "the session that is held was not released").toEqual({ released: ["held"], kept: [] });
});

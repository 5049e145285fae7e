import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { markedRecord } from "../../src/sessions/view.js";
import { openFileStore } from "../../src/store/file/file-store.js";
import type { SessionStore } from "../../src/store/ports.js";
import { altered } from "../fixtures/store/altered-store.js";
import { sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const NEVER = new AbortController().signal;

/** A store that counts how often a session is read, and a home beside it. */
async function place() {
  const root = await temporaryRoot();
  const store = openFileStore(root);
  const home = join(root, "home");
  let reads = 0;
  const read: SessionStore["read"] = async (id) => {
    reads++;
    return await store.sessions.read(id);
  };
  return { store, home, counting: altered(store, { sessions: { read } }), reads: () => reads };
}

it("markedRecord waits until gc has put back the record of a session that is in use", async () => {
  const { store, home, counting, reads } = await place();
  mkdirSync(join(home, "session-state", "back"), { recursive: true });
  const found = markedRecord(counting, { home }, "back", NEVER);
  await expect.poll(reads).toBeGreaterThan(2);
  await store.sessions.create(sessionRecord("back"));
  expect(await found).toMatchObject({ id: "back" });
});

it("markedRecord does not wait for the record if the session's folder is gone, too", async () => {
  const { home, counting, reads } = await place();
  expect(await markedRecord(counting, { home }, "gone", NEVER)).toBeNull();
  expect(reads()).toBe(1);
});

it("markedRecord stops waiting for a record when its caller gives up", async () => {
  const { home, counting } = await place();
  mkdirSync(join(home, "session-state", "back"), { recursive: true });
  const caller = new AbortController();
  const found = markedRecord(counting, { home }, "back", caller.signal);
  caller.abort(new Error("given up"));
  await expect(found).rejects.toThrow("given up");
});

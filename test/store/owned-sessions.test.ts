import { readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { openFileStore } from "../../src/store/file/file-store.js";
import { sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

beforeEach(() => void vi.useFakeTimers({ toFake: ["performance"] }));
afterEach(() => void vi.useRealTimers());

/** A store with alice's sessions a and b. `crash` adds a session's file without a record, as a killed deletion does. */
async function setUp() {
  const root = await temporaryRoot();
  const { sessions } = openFileStore(root);
  for (const id of ["a", "b"]) await sessions.create(sessionRecord(id));
  const [folder = ""] = readdirSync(join(root, "owned"));
  const crash = (id: string) => writeFileSync(join(root, "owned", folder, id), "");
  return { sessions, crash };
}

it("count includes a half-deleted session unless the number of sessions has reached the limit", async () => {
  const { sessions, crash } = await setUp();
  crash("half-deleted");
  expect(await sessions.count("alice", 4)).toBe(3);
  expect(await sessions.count("alice", 3)).toBe(2);
  expect(await sessions.count("alice", 4)).toBe(2);
});

it("at the limit, count includes a half-deleted session until 5 s after it last read the records", async () => {
  const { sessions, crash } = await setUp();
  expect(await sessions.count("alice", 2)).toBe(2);
  crash("half-deleted");
  await sessions.create(sessionRecord("c"));
  expect(await sessions.count("alice", 2)).toBe(4);
  vi.advanceTimersByTime(4_999);
  expect(await sessions.count("alice", 2)).toBe(4);
  vi.advanceTimersByTime(1);
  expect(await sessions.count("alice", 2)).toBe(3);
});

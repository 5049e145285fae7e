import { mkdtemp, realpath } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { FleetError } from "../../src/base/errors.js";
import { makeRoom, sweepKeyedTurns, TurnJournal } from "../../src/sessions/use/keyed.js";
import type { OpenSession } from "../../src/sessions/use/open-session.js";
import type { Store } from "../../src/store/store.js";
import { openStore } from "../../src/store/store.js";
import { removeFolder } from "../fixtures/remove-folder.js";
import { keyedTurn, sessionRecord } from "../fixtures/store/store-records.js";

let root: string;
let store: Store;
beforeEach(async () => {
  root = await realpath(await mkdtemp(join(tmpdir(), "copilotfleet-keyed-")));
  store = openStore("file", join(root, "state"));
});
afterEach(async () => {
  await store.close();
  await removeFolder(root);
});

describe("records of idempotency keys", () => {
  it("gc deletes the records of idempotency keys that have expired", async () => {
    const past = new Date(Date.now() - 1).toISOString();
    await store.keyedTurns.create(keyedTurn("alice", "old", { expiresAt: past, outcome: "answered" }));
    await store.keyedTurns.create(keyedTurn("alice", "cut", { expiresAt: past }));
    await store.keyedTurns.create(keyedTurn("bob", "new"));
    await sweepKeyedTurns(store);
    expect((await store.keyedTurns.list(null)).map(({ key }) => key)).toEqual(["new"]);
  });

  it("when a user has 1,000 records, makeRoom deletes the 100 oldest that have ended, and fails if none has ended", async () => {
    const { keyedTurns } = store;
    // Keep the records in memory, because a thousand writes to a disk take long.
    const records = new Map(
      Array.from({ length: 1_000 }, (_, index) => {
        const expiresAt = new Date(Date.now() + 1_000 * (index + 1)).toISOString();
        return [`k${index}`, keyedTurn("alice", `k${index}`, { expiresAt, outcome: index < 50 ? null : "answered" })];
      }),
    );
    const memory = {
      ...keyedTurns,
      count: async () => records.size,
      list: async () => [...records.values()],
      delete: async (_: string, key: string) => void records.delete(key),
    } as unknown as Store["keyedTurns"];
    await makeRoom(memory, "alice");
    expect(records.size).toBe(900);
    expect([records.has("k49"), records.has("k50"), records.has("k149"), records.has("k150")]).toEqual([
      true,
      false,
      false,
      true,
    ]);
    for (let index = 0; index < 1_000; index++) records.set(`k${index}`, keyedTurn("alice", `k${index}`));
    await expect(makeRoom(memory, "alice")).rejects.toMatchObject({ code: "FLEET_LIMIT_REACHED" });
  });
});

describe("a failed prompt with an idempotency key", () => {
  const failed = new FleetError("FLEET_TURN_FAILED", "The prompt was not accepted.");

  /** Sends a prompt that fails without an event, in a session whose history then has these prompts. */
  async function send(history: () => Promise<{ content: string; messageId: string }[]>): Promise<void> {
    const context = { store: store.keyedTurns, histories: { events: () => [] as never }, warn: () => undefined };
    const request = { user: "alice", key: "k", sessionId: "s", prompt: "hi", digest: "d" };
    const signal = new AbortController().signal;
    const journal = new TurnJournal(context, { ...request, onEvent: () => undefined, signal });
    await journal.isOver(sessionRecord("s"));
    const open = {
      history: async () => ({ bytes: 0, prompts: await history() }),
      settled: async () => undefined,
      beforeRequests: () => ({ [Symbol.dispose]: () => undefined }),
    } as unknown as OpenSession;
    await expect(journal.run(open, async () => await Promise.reject(failed))).rejects.toBe(failed);
  }

  it("a failed prompt keeps its idempotency key if the history has the prompt, or cannot be read", async () => {
    await send(async () => [{ content: "hi", messageId: "m" }]);
    expect(await store.keyedTurns.read("alice", "k")).toMatchObject({ outcome: null });
    await store.keyedTurns.delete("alice", "k");
    let reads = 0;
    await send(async () => (reads++ === 0 ? [] : await Promise.reject(new Error("no history"))));
    expect(await store.keyedTurns.read("alice", "k")).toMatchObject({ outcome: null });
  });
});

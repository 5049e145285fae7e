import { expect, it } from "vitest";
import type { SessionRecord } from "../../src/base/session.js";
import type { Pool } from "../../src/servers/pool.js";
import { type Move, serverUnderLease } from "../../src/sessions/use/server.js";
import { openFileStore } from "../../src/store/file/file-store.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const HERE: Partial<SessionRecord> = { host: "h1", term: 7, serverId: "shared-1" };

/**
 * Calls `serverUnderLease` for the session `team`. During the call, `change` changes the session's record. Resolves
 * with the record after the call. Shared servers have the same ids on all hosts.
 */
async function moving(change: (draft: SessionRecord) => void): Promise<SessionRecord | null> {
  const root = await temporaryRoot();
  const store = openFileStore(root);
  const [one, two] = ["shared-1", "shared-2"].map((id) =>
    serverRecord(id, { isolation: "shared", user: null, process: null, state: "stopped", home: `${root}/${id}/home` }),
  );
  if (one === undefined || two === undefined) throw new Error("there are two servers");
  await store.registry.update((draft) => {
    Object.assign(draft.servers, { "shared-1": one, "shared-2": two });
  });
  await store.sessions.create(sessionRecord("team", { ...HERE, kind: "collaborative", turns: 1 }));
  const record = await store.sessions.read("team");
  if (record === null) throw new Error("it was just recorded");
  const pool = {
    // The record changes while the server starts.
    sharedServerFor: async () => {
      await store.sessions.update("team", change);
      return { server: two, reason: "" };
    },
    shared: async () => one,
  } as unknown as Pool;
  const lease = { check: async () => undefined } as unknown as Move["lease"];
  await serverUnderLease(record, { store, pool, user: "alice", lease, signal: new AbortController().signal });
  return await store.sessions.read("team");
}

it("serverUnderLease moves a session that no server has in memory to the lease holder's shared server", async () => {
  expect(await moving(() => undefined)).toMatchObject({ ...HERE, serverId: "shared-2" });
});

// In each of these cases, moving the session could put it into the memory of two servers.
it.each<[string, (draft: SessionRecord) => void]>([
  ["another host has taken", (draft) => Object.assign(draft, { host: "h2", term: 9 })],
  ["this host has taken again in another term", (draft) => Object.assign(draft, { term: 9 })],
  [
    "is on its way from another host",
    (draft) => Object.assign(draft, { from: { host: "h3", group: "shared", mark: "a", taker: null } }),
  ],
])("serverUnderLease does not move a session that %s while the server started", async (_, change) => {
  const now = await moving(change);
  expect(now?.serverId).toBe("shared-1");
});

import { expect, it } from "vitest";
import type { Pool } from "../../src/pool/pool.js";
import { type Move, serverUnderLease } from "../../src/sessions/between-servers.js";
import { openFileStore } from "../../src/store/file/file-store.js";
import type { SessionRecord } from "../../src/store/store.js";
import { serverRecord, sessionRecord } from "../fixtures/store-records.js";
import { temporaryRoot } from "../fixtures/store-root.js";

const HERE: Partial<SessionRecord> = { host: "h1", term: 7, serverId: "shared-1" };

/** Shared servers go by the same ids on all hosts. */
async function moving(meanwhile: (draft: SessionRecord) => void): Promise<SessionRecord | null> {
  const root = await temporaryRoot();
  const store = openFileStore(root);
  const [one, two] = ["shared-1", "shared-2"].map((id) =>
    serverRecord(id, { isolation: "shared", user: null, process: null, state: "stopped", home: `${root}/${id}/home` }),
  );
  if (one === undefined || two === undefined) throw new Error("there are two servers");
  await store.updateRegistry((draft) => {
    Object.assign(draft.servers, { "shared-1": one, "shared-2": two });
  });
  await store.createSession(sessionRecord("team", { ...HERE, kind: "collaborative", turns: 1 }));
  const record = await store.readSession("team");
  if (record === null) throw new Error("it was just recorded");
  const pool = {
    // As long as the start of a server takes.
    sharedServerFor: async () => {
      await store.updateSession("team", meanwhile);
      return { server: two, reason: "" };
    },
    shared: async () => one,
  } as unknown as Pool;
  const lease = { check: async () => undefined } as unknown as Move["lease"];
  await serverUnderLease(record, { store, pool, user: "alice", lease, signal: new AbortController().signal });
  return await store.readSession("team");
}

it("takes a session that is in no memory to the server that the holder of its lease is placed on", async () => {
  expect(await moving(() => undefined)).toMatchObject({ ...HERE, serverId: "shared-2" });
});

// Or it were in the memory of two servers there.
it.each<[string, (draft: SessionRecord) => void]>([
  ["another host has taken meanwhile", (draft) => Object.assign(draft, { host: "h2", term: 9 })],
  ["this host has taken back in another term", (draft) => Object.assign(draft, { term: 9 })],
  ["was let go", (draft) => Object.assign(draft, { released: true })],
  ["is on its way", (draft) => Object.assign(draft, { from: { host: "h3", group: "shared", mark: "a", taker: null } })],
])("leaves one where it is that %s", async (_, meanwhile) => {
  const now = await moving(meanwhile);
  expect(now?.serverId).toBe("shared-1");
});

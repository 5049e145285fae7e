import { expect, it } from "vitest";
import type { ServerState } from "../../../src/base/server.js";
import { isEnding } from "../../../src/sessions/requests.js";
import { openStore } from "../../../src/store/store.js";
import { serverRecord, sessionRecord } from "../../fixtures/store/store-records.js";
import { temporaryRoot } from "../../fixtures/store/store-root.js";

it("a request at a server that drains stays open if its user is suspended, because an answer would let the turn go on", async () => {
  const store = openStore("file", await temporaryRoot());
  await store.sessions.create(sessionRecord("s"));
  const serverIs = async (state: ServerState) =>
    await store.registry.update(({ servers }) => void Object.assign(servers, { s1: serverRecord("s1", { state }) }));
  await serverIs("ready");
  const isOver = async () => await isEnding({ store, directory: { own: null } }, { session: "s", user: "alice" });
  expect(await isOver()).toBe(false);
  await serverIs("draining");
  expect(await isOver()).toBe(true);
  await store.limits.set("alice", (own) => ({
    ...own,
    suspended: { since: "2026-01-01T00:00:00.000Z", reason: null },
  }));
  expect(await isOver()).toBe(false);
});

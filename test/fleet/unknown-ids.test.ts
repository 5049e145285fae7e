import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it, onTestFinished, vi } from "vitest";
import { Fleet } from "../../src/fleet/fleet.js";
import { openParts } from "../../src/fleet/parts.js";
import { removeFolder } from "../fixtures/remove-folder.js";
import { sessionRecord } from "../fixtures/store/store-records.js";

/** Opens a fleet with the sessions of one user. `lists` returns how often it has read the list of all sessions. */
async function opened(ids: readonly string[]) {
  const folder = mkdtempSync(join(tmpdir(), "copilotfleet-unknown-"));
  const parts = openParts({ env: { HOME: folder, COPILOTFLEET_HOME: join(folder, "state") }, cwd: folder });
  // Call the private constructor, because the test has to watch the parts of this fleet.
  const fleet = Reflect.construct(Fleet, [parts]) as Fleet;
  const list = vi.spyOn(parts.store.sessions, "list");
  onTestFinished(async () => {
    list.mockRestore();
    await fleet.close();
    await removeFolder(folder);
  });
  for (const id of ids) await parts.store.sessions.create(sessionRecord(id, { owner: "alice" }));
  return { fleet, lists: () => list.mock.calls.length };
}

it("evict, delete and locks refuse unknown ids without reading the list of all sessions", async () => {
  const { fleet, lists } = await opened(["notes"]);
  const { skipped } = await fleet.sessions.evict({ ids: ["a", "b", "notes"] });
  expect(skipped).toEqual([
    { id: "a", reason: "not found" },
    { id: "b", reason: "not found" },
    { id: "notes", reason: "not active" },
  ]);
  await expect(fleet.sessions.delete(["a", "b"])).rejects.toMatchObject({ code: "FLEET_SESSION_NOT_FOUND" });
  await expect(fleet.leases.get("a")).rejects.toMatchObject({ code: "FLEET_SESSION_NOT_FOUND" });
  expect(lists()).toBe(0);
});

it("revoking a token and purging a user that do not exist fails, names what is close, and leaves no event", async () => {
  const { fleet } = await opened(["notes"]);
  const { id } = await fleet.tokens.issue("alice");
  const { id: other } = await fleet.tokens.issue("alice");
  const wrong = id.slice(0, -1);
  await expect(fleet.tokens.revoke({ ids: [wrong, other] })).rejects.toMatchObject({
    code: "FLEET_NAME_NOT_FOUND",
    exit: 4,
    suggestions: expect.arrayContaining([`Did you mean ${id}?`]),
    outcome: { revoked: [other], notFound: [wrong] },
  });
  expect((await fleet.tokens.list()).map((token) => token.id)).toEqual([id]);
  const refusal = {
    code: "FLEET_NAME_NOT_FOUND",
    exit: 4,
    suggestions: expect.arrayContaining(["Did you mean alice?"]),
  };
  await expect(fleet.users.purge("alicce")).rejects.toMatchObject(refusal);
  expect((await fleet.events.list({ type: "token.revoked" })).map(({ detail }) => detail)).toEqual([`token ${other}`]);
  expect(await fleet.events.list({ type: "user.purged" })).toEqual([]);
  expect(await fleet.tokens.revoke({ ids: [wrong] }, { ignoreNotFound: true })).toEqual({ revoked: [] });
  expect(await fleet.users.purge("alicce", { ignoreNotFound: true })).toMatchObject({ sessions: 0, tokens: 0 });
});

it("sessions.matching finds a user's sessions by the beginning of an id, without reading all sessions", async () => {
  const { fleet, lists } = await opened(["notes-1", "notes-2", "novel"]);
  expect(await fleet.sessions.matching(["nov", "notes", "novel", "zzz"])).toEqual([
    ["novel"],
    expect.arrayContaining(["notes-1", "notes-2"]),
    ["novel"],
    [],
  ]);
  expect(await fleet.sessions.matching(["nov"], { user: "alice" })).toEqual([["novel"]]);
  expect(await fleet.sessions.matching(["nov"], { user: "bob" })).toEqual([[]]);
  expect(lists()).toBe(0);
});

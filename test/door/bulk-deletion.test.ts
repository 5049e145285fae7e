import { expect, it } from "vitest";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

async function begun(client: RawClient, ...ids: string[]): Promise<void> {
  for (const sessionId of ids) {
    expect((await client.request("session.create", { sessionId })).error).toBeUndefined();
    expect((await client.turn(sessionId, "hi")).error).toBeUndefined();
  }
}

it("the front door deletes in bulk only the sessions that the user may delete, together with their records", async () => {
  await using at = await DoorFleet.open();
  const alice = await RawClient.as(at.url, await at.token("alice"));
  const mallory = await RawClient.as(at.url, await at.token("mallory"));
  await begun(alice, "secret", "locked", "old");
  await begun(mallory, "mallorys");
  const lease = await at.fleet.leases.acquire("locked", { user: "alice" });
  const sessionIds = ["secret", "locked", "old", "mallorys"];
  const foreign = await mallory.request("sessions.bulkDelete", { sessionIds: ["secret", "nobodys"] });
  expect(foreign.result).toEqual({ freedBytes: { secret: 0, nobodys: 0 } });
  expect(await at.store.sessions.read("secret")).not.toBeNull();

  const { result } = await alice.request("sessions.bulkDelete", { sessionIds });
  expect(result).toEqual({ freedBytes: { secret: expect.any(Number), old: expect.any(Number), mallorys: 0 } });
  expect(at.events).toContainEqual(
    expect.objectContaining({ event: "denied", sessionId: "locked", code: "FLEET_SESSION_LOCKED", user: "alice" }),
  );
  expect((await at.store.sessions.list()).map(({ id }) => id).sort()).toEqual(["locked", "mallorys"]);

  const pruned = await alice.request("sessions.pruneOld", { olderThanDays: 0, includeNamed: true });
  expect(pruned.result).toMatchObject({ deleted: [], skipped: ["locked"], freedBytes: 0 });
  await lease.release();
  const again = await alice.request("sessions.pruneOld", { olderThanDays: 0, includeNamed: true });
  expect(again.result).toMatchObject({ deleted: ["locked"], skipped: [] });
  expect((await at.store.sessions.list()).map(({ id }) => id)).toEqual(["mallorys"]);
});

it("the front door refuses to delete sessions in bulk on a shared server", async () => {
  await using at = await DoorFleet.open({ config: { isolation: "shared" } });
  const alice = await RawClient.as(at.url, await at.token("alice"));
  await begun(alice, "kept");
  const denied = { error: { code: -32003, data: { code: "FLEET_METHOD_DENIED" } } };
  expect(await alice.request("sessions.bulkDelete", { sessionIds: ["kept"] })).toMatchObject(denied);
  expect(await alice.request("sessions.pruneOld", { olderThanDays: 0 })).toMatchObject(denied);
  expect(await at.store.sessions.read("kept")).not.toBeNull();
});

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { eventually } from "../fixtures/fault-fleet.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

describe("a client whose session was deleted, on a server where others are, too", () => {
  let at: DoorFleet;
  beforeAll(async () => {
    at = await DoorFleet.open({ from: 16_735, to: 16_739 }, { config: { isolation: "shared" } });
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
  });

  const lives = ({ received }: RawClient, id: string) =>
    received.flatMap(({ method, params }) =>
      method === "session.lifecycle" && params?.sessionId === id ? [String(params.type)] : [],
    );

  it.each([
    { how: "loaded", id: "namesake-1" },
    { how: "evicted", id: "namesake-2" },
  ])("hears nothing of somebody else's of the same id ($how)", async ({ how, id }) => {
    const listener = await RawClient.as(at.url, await at.token("ann"));
    await listener.request("session.create", { sessionId: id });
    await listener.turn(id, "hello");
    if (how === "evicted") {
      await eventually("the eviction", async () => (await at.fleet.evict({ ids: [id] })).evicted.length > 0);
    }
    await at.fleet.deleteSessions([id]);
    await eventually("it is told", () => lives(listener, id).includes("session.deleted"));
    // Whatever else is said of its end has come by now.
    await listener.request("ping");
    const before = listener.received.length;
    const other = await RawClient.as(at.url, await at.token("bob"));
    expect(await other.request("session.create", { sessionId: id })).toMatchObject({ result: { sessionId: id } });
    await other.turn(id, "a secret");
    // Whatever the server says to all has come by now: it answers behind it.
    await listener.request("ping");
    expect(listener.received.slice(before).filter(({ params }) => params?.sessionId === id)).toEqual([]);
    expect(lives(other, id)).toContain("session.created");
  });

  it("hears of its own that was evicted, once it has it open again", async () => {
    const client = await RawClient.as(at.url, await at.token("ann"));
    await client.request("session.create", { sessionId: "own" });
    await client.turn("own", "one");
    await eventually("the eviction", async () => (await at.fleet.evict({ ids: ["own"] })).evicted.length > 0);
    const before = lives(client, "own").length;
    await client.turn("own", "two");
    await eventually("its life goes on", () => lives(client, "own").slice(before).includes("session.updated"));
  });
});

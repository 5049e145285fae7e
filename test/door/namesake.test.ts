import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { unused } from "../fixtures/sessions/unused.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

describe("the front door, for a client of a shared server whose session was deleted or evicted,", () => {
  let at: DoorFleet;
  beforeAll(async () => {
    at = await DoorFleet.open({ config: { isolation: "shared" } });
  });
  afterAll(async () => {
    await at[Symbol.asyncDispose]();
  });

  const lives = ({ received }: RawClient, id: string) =>
    received.flatMap(({ method, params }) =>
      method === "session.lifecycle" && params?.sessionId === id ? [String(params.type)] : [],
    );

  it.each(["loaded", "evicted"])(
    "sends the client no event of another user's new session with the same id (old session: %s)",
    async (how) => {
      const id = unused("namesake");
      const listener = await RawClient.as(at.url, await at.token("ann"));
      await listener.requestOk("session.create", { sessionId: id });
      await listener.turnOk(id, "hello");
      if (how === "evicted") {
        await eventually("the eviction", async () => (await at.fleet.sessions.evict({ ids: [id] })).evicted.length > 0);
      }
      await at.fleet.sessions.delete([id]);
      await eventually("it is told", () => lives(listener, id).includes("session.deleted"));
      // All other events about the deletion arrive before the answer to this ping.
      await listener.requestOk("ping");
      const before = listener.received.length;
      const other = await RawClient.as(at.url, await at.token("bob"));
      expect(await other.request("session.create", { sessionId: id })).toMatchObject({ result: { sessionId: id } });
      await other.turnOk(id, "a secret");
      // All events that the server sends to all clients arrive before the answer to this ping.
      await listener.requestOk("ping");
      expect(listener.received.slice(before).filter(({ params }) => params?.sessionId === id)).toEqual([]);
      expect(lives(other, id)).toContain("session.created");
    },
  );
});

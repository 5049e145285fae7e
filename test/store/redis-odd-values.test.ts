import { afterAll, beforeAll, beforeEach, describe, expect, it, onTestFinished } from "vitest";
import { issueToken } from "../../src/identity/tokens.js";
import { openStore, type RedisStore } from "../../src/store/store.js";
import { parsed, RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const problem = redisProblem();
const ENTRY = { door: null, state: "serving", startedAt: "2026-01-01T00:00:00.000Z", storage: null } as const;

/** Somebody who may write to Redis has put these values there. */
describe.skipIf(problem !== undefined)("values in Redis that the fleet never writes", () => {
  let redis: RedisServer;
  let fleets = 0;
  let fleet: string;
  let store: RedisStore;

  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(async () => await redis.end());
  beforeEach(async () => {
    fleet = `o${fleets++}`;
    store = openStore(redis.url(fleet), await temporaryRoot(), { host: "h1", instance: () => "i-h1" });
    onTestFinished(async () => await store.close());
  });

  const key = (name: string) => `copilotfleet:{${fleet}}:${name}`;

  it("reading a lease drops control characters, and fails with the lease's key if a number is invalid", async () => {
    const request = { sessionId: "s", holder: "alice", token: "t", ttlMs: 60_000, placeMs: 1_000 };
    await store.leases.acquire(request);
    await redis.client.hset(key("lease:s"), { holder: "a\u001b[2J", steal: "b\u001b[2J" });
    const lease = await store.leases.read("s");
    expect(JSON.stringify(lease)).not.toContain("\\u001b");
    expect(lease).toMatchObject({ holder: expect.stringMatching(/^a/), stealReason: expect.stringMatching(/^b/) });
    for (const odd of [{ acquired: "never" }, { expires: "1e999" }, { fence: "9".repeat(30) }, { ttl: "NaN" }]) {
      await store.leases.acquire({ ...request, steal: { reason: "x" } });
      await redis.client.hset(key("lease:s"), odd);
      await expect(store.leases.read("s"), JSON.stringify(odd)).rejects.toMatchObject({
        code: "FLEET_STATE_CORRUPT",
        message: expect.stringContaining("lease:s"),
      });
      await redis.client.del(key("lease:s"));
    }
  });

  it("a heartbeat fails with FLEET_SUPERVISOR_RUNNING even if the other instance's entry in Redis is damaged", async () => {
    await store.hosts?.beat("i-h1", ENTRY, 60_000);
    const taken = { instance: "other", until: Date.now() + 60_000 };
    for (const entry of ["no JSON", "[]", '{"door":"\\u001b[2J"}']) {
      await redis.client.hset(key("host:h1"), { ...taken, entry });
      const error = await store.hosts?.beat("i-h1", ENTRY, 60_000).catch((thrown: unknown) => thrown);
      expect(error, entry).toMatchObject({ code: "FLEET_SUPERVISOR_RUNNING" });
      expect(String((error as Error).message)).not.toContain("\u001b");
    }
  });

  it("invalid ids and tokens in Redis are left out of the lists, which still contain valid tokens", async () => {
    const { id } = await issueToken(store, "alice", null);
    await redis.client.sadd(key("sessions"), "../../etc", "a\u001b[2J");
    expect(await store.sessions.list()).toEqual([]);
    expect(await store.sessions.ids(null)).toEqual([]);
    await redis.client.set(key("token:aaaa"), "garbage");
    await redis.client.sadd(key("tokens"), "aaaa", "../x");
    expect((await store.tokens.list()).map((record) => record.id)).toEqual([id]);
    expect(store.takeWarnings().join("\n")).toContain("token:aaaa");
  });
});

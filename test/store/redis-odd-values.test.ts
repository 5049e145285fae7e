import { afterAll, beforeAll, beforeEach, describe, expect, it, onTestFinished } from "vitest";
import { issueToken } from "../../src/identity/tokens.js";
import { openStore, type Store } from "../../src/store/store.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const problem = redisProblem();
const ENTRY = { door: null, state: "serving", startedAt: "2026-01-01T00:00:00.000Z", storage: null } as const;

/** Somebody who may write to Redis has put these values there. */
describe.skipIf(problem !== undefined)("values in Redis that the fleet never writes", () => {
  let redis: RedisServer;
  let fleets = 0;
  let fleet: string;
  let store: Store;

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

  it("a damaged lease is refused, and not treated as free, until its session is deleted", async () => {
    await store.sessions.create(sessionRecord("s"));
    await redis.client.set(key("lease:s"), "garbage");
    const request = { sessionId: "s", holder: "alice", token: "t", ttlMs: 60_000, placeMs: 1_000 };
    const corrupt = { code: "FLEET_STATE_CORRUPT", message: expect.stringContaining("lease:s") };
    await expect(store.leases.read("s")).rejects.toMatchObject(corrupt);
    await expect(store.leases.acquire(request)).rejects.toMatchObject(corrupt);
    await expect(store.leases.check("s", "t")).rejects.toMatchObject(corrupt);
    expect(await store.sessions.delete("s")).toBe(true);
    expect(await store.leases.acquire(request)).toMatchObject({ granted: true });
  });

  it("a heartbeat replaces a damaged entry of its own host", async () => {
    for (const entry of ["no header", "2 1-abc\n[]", '2 1-abc\n{"door":"\\u001b[2J"}']) {
      await redis.client.set(key("host:h1"), entry);
      await store.hosts?.beat("i-h1", ENTRY, 60_000);
      expect(await store.hosts?.list()).toMatchObject([{ name: "h1", instance: "i-h1", gone: false }]);
    }
  });

  it("invalid ids and tokens in Redis are left out of the lists, which still contain valid tokens", async () => {
    const { id } = await issueToken(store, "alice", null);
    for (const id of ["../../etc", "a\u001b[2J"]) await redis.client.zadd(key("session-ids"), 0, id);
    expect(await store.sessions.list()).toEqual([]);
    expect(await store.sessions.ids(null)).toEqual([]);
    await redis.client.set(key("token:aaaa"), "garbage");
    for (const id of ["aaaa", "../x"]) await redis.client.zadd(key("token-ids"), 0, id);
    expect((await store.tokens.list()).map((record) => record.id)).toEqual([id]);
    expect(store.takeWarnings().join("\n")).toContain("token:aaaa");
  });
});

import { afterAll, beforeAll, describe, expect, it, onTestFinished, vi } from "vitest";
import type { HostEntry } from "../../src/base/host.js";
import type { LeaseRequest } from "../../src/base/session.js";
import type { Store } from "../../src/store/store.js";
import { openStore } from "../../src/store/store.js";
import { CuttingProxy } from "../fixtures/store/cutting-proxy.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";
import { keyedRoot } from "../fixtures/store/store-root.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`tests of cut connections are skipped: ${problem}`);

function request(token: string, over: Partial<LeaseRequest> = {}): LeaseRequest {
  return { sessionId: "a", holder: token, token, ttlMs: 600_000, placeMs: 600_000, ...over };
}

describe.skipIf(problem !== undefined)("a Redis connection that breaks after a write, before its answer", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(() => redis.end());

  /** Two stores on one database. Only `store` connects through the proxy. Redis already has the Lua scripts of both. */
  async function stores(): Promise<{ store: Store; direct: Store; proxy: CuttingProxy }> {
    const proxy = await CuttingProxy.start(redis.port);
    const url = redis.url();
    const through = url.replace(String(redis.port), String(proxy.port));
    // The limit is high, because a test delays operations, and a slow machine can make the delay long.
    const store = openStore(through, await keyedRoot(), { operationMs: 60_000 });
    const direct = openStore(url, await keyedRoot());
    onTestFinished(async () => {
      await store.close();
      await direct.close();
      await proxy.end();
    });
    for (const each of [store, direct]) {
      await each.sessions.create(sessionRecord("warm"));
      await each.registry.update(
        (draft) => void Object.assign(draft.servers, { s1: serverRecord("s1", { failure: "0" }) }),
      );
      await each.leases.acquire(request("warm", { sessionId: "warm" }));
      await each.leases.renew("warm", "warm", 1_000);
      await each.leases.release("warm", "warm");
      await each.sessions.delete("warm");
    }
    return { store, direct, proxy };
  }

  it("a registry change is made once when its answer is lost and another writer commits before the change is sent again", async () => {
    const { store, direct, proxy } = await stores();
    const add = (draft: { placed?: number }) => {
      draft.placed = (draft.placed ?? 0) + 1;
      return draft.placed;
    };
    proxy.loseAnswerTo(/:commit:/);
    const open = proxy.hold();
    const update = store.registry.update(add);
    await expect.poll(async () => (await direct.registry.read()).placed).toBe(1);
    expect(await direct.registry.update(add)).toBe(2);
    open();
    expect(await update).toBe(1);
    expect((await direct.registry.read()).placed).toBe(2);
  });

  it("a session is created once, without an error, when the connection to Redis breaks before the answer", async () => {
    const { store, direct, proxy } = await stores();
    proxy.loseAnswerTo(/:commit:/);
    await store.sessions.create(sessionRecord("a"));
    expect(proxy.cuts).toBe(1);
    expect(await direct.sessions.read("a")).toEqual(sessionRecord("a"));
    await expect(store.sessions.create(sessionRecord("a"))).rejects.toMatchObject({ code: "FLEET_SESSION_EXISTS" });
  });

  it("a deletion reports that the session was deleted even if the connection to Redis breaks before the answer", async () => {
    const { store, direct, proxy } = await stores();
    for (const id of ["a", "b"]) await store.sessions.create(sessionRecord(id));
    proxy.loseAnswerTo(/:commit:/);
    expect(await store.sessions.delete("a")).toBe(true);
    proxy.loseAnswerTo(/:commit:/);
    expect(await store.sessions.deleteMany(["a", "b"], () => true)).toEqual(["b"]);
    expect(proxy.cuts).toBe(2);
    expect(await direct.sessions.list()).toEqual([]);
  });

  it("a deletion that is sent again after a lost answer does not delete a new session with the same id", async () => {
    const { store, direct, proxy } = await stores();
    await store.sessions.create(sessionRecord("a"));
    proxy.loseAnswerTo(/:commit:/);
    const open = proxy.hold();
    const deletion = store.sessions.delete("a");
    await expect.poll(() => direct.sessions.read("a")).toBeNull();
    await direct.sessions.create(sessionRecord("a", { owner: "bob" }));
    open();
    expect(await deletion).toBe(true);
    expect(await direct.sessions.read("a")).toMatchObject({ owner: "bob" });
  });

  it("a lease is acquired, renewed and released once when the connection to Redis breaks before the answer", async () => {
    const { store, direct, proxy } = await stores();
    proxy.loseAnswerTo(/lease:a/);
    const answer = await store.leases.acquire(request("t1"));
    expect(answer).toMatchObject({ granted: true });
    expect(await direct.leases.read("a")).toMatchObject({ fence: answer.lease?.fence, holder: "t1" });
    expect(await direct.leases.highestFence()).toBe(answer.lease?.fence);

    proxy.loseAnswerTo(/lease:a/);
    expect(await store.leases.renew("a", "t1", 700_000)).toMatchObject({ fence: answer.lease?.fence, ttlMs: 700_000 });

    proxy.loseAnswerTo(/:commit:/);
    const open = proxy.hold();
    const release = store.leases.release("a", "t1");
    await expect.poll(() => direct.leases.read("a")).toBeNull();
    const next = await direct.leases.acquire(request("t2"));
    open();
    await release;
    expect(proxy.cuts).toBe(3);
    expect(await direct.leases.check("a", "t2")).toMatchObject({ fence: next.lease?.fence });
    await expect(store.leases.release("a", "t1")).rejects.toMatchObject({ code: "FLEET_LEASE_LOST" });
  });

  it("a waiter keeps its position in the lease queue when the connection to Redis breaks before the answer", async () => {
    const { store, direct, proxy } = await stores();
    await direct.leases.acquire(request("t1"));
    proxy.loseAnswerTo(/lease:a/);
    expect(await store.leases.acquire(request("t2"))).toMatchObject({ granted: false, ahead: 0 });
    expect(await direct.leases.acquire(request("t3"))).toMatchObject({ granted: false, ahead: 1 });
    expect(await store.leases.acquire(request("t2"))).toMatchObject({ granted: false, ahead: 0 });
    expect(proxy.cuts).toBe(1);
  });

  it("a heartbeat that is sent again overwrites neither a newer heartbeat nor the host's departure", async () => {
    const proxy = await CuttingProxy.start(redis.port);
    onTestFinished(() => proxy.end());
    const url = redis.url();
    const options = { host: "h1", instance: () => "i1" };
    const through = url.replace(String(redis.port), String(proxy.port));
    const store = openStore(through, await keyedRoot(), options);
    const direct = openStore(url, await keyedRoot(), options);
    onTestFinished(async () => void (await Promise.all([store.close(), direct.close()])));
    const [hosts, watcher] = [store.hosts, direct.hosts];
    if (hosts === null || watcher === null) throw new Error("the store knows no hosts");
    const entry: HostEntry = { door: null, state: "serving", startedAt: "2026-01-01T00:00:00.000Z", storage: null };
    const { term } = await hosts.beat("i1", entry, 60_000);
    // Math.random sets the pause before an interrupted operation is sent again. With this value, the pause is 500 ms.
    const random = vi.spyOn(Math, "random").mockReturnValue(50);
    onTestFinished(() => random.mockRestore());

    /** Runs `later` while an earlier heartbeat waits to be sent again. */
    const overtake = async (later: () => Promise<unknown>) => {
      const cuts = proxy.cuts;
      proxy.loseAnswerTo(/older/);
      const older = hosts.beat("i1", { ...entry, door: "older:1" }, 60_000);
      await expect.poll(() => proxy.cuts, { interval: 5 }).toBe(cuts + 1);
      await new Promise((resolve) => setTimeout(resolve, 100));
      await later();
      await older;
    };
    await overtake(async () => await hosts.beat("i1", { ...entry, door: "newer:1", state: "draining" }, 60_000));
    expect(await watcher.list()).toMatchObject([{ door: "newer:1", state: "draining", term, gone: false }]);
    await overtake(async () => await hosts.leave("i1"));
    expect(await watcher.list()).toMatchObject([{ gone: true }]);
    expect((await hosts.beat("i1", entry, 60_000)).term).toBeGreaterThan(term);
    expect(await watcher.list()).toMatchObject([{ door: null, gone: false }]);
  });
});

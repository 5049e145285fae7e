import { spawnSync } from "node:child_process";
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import type { HostEntry } from "../../src/base/host.js";
import type { LeaseRequest } from "../../src/base/session.js";
import type { Store } from "../../src/store/store.js";
import { openStore } from "../../src/store/store.js";
import { bundleFixture } from "../fixtures/bundle.js";
import { eventually } from "../fixtures/eventually.js";
import { Stopwatch } from "../fixtures/stopwatch.js";
import { CuttingProxy } from "../fixtures/store/cutting-proxy.js";
import { freePort, parsed, RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";
import { keyedRoot } from "../fixtures/store/store-root.js";

/*
 * Faults of a real Redis: it stalls, dies, loses its data or is full. Each time, a call fails with a clear error within
 * a bounded time, no lease has two holders, and fences never decrease.
 */

const problem = redisProblem();
if (problem !== undefined) console.warn(`fault tests of the Redis store are skipped: ${problem}`);

/** The time limit that the store promises for a call, plus a margin for a busy machine, in milliseconds. */
const BOUND_MS = 5_000 + 2_500;
/** A short time limit for a call, in milliseconds, for tests that do not measure the wait. */
const SHORT_MS = 700;

const program = problem === undefined ? bundleFixture("redis-idle") : "";

function request(token: string, over: Partial<LeaseRequest> = {}): LeaseRequest {
  return { sessionId: "a", holder: token, token, ttlMs: 600_000, placeMs: 600_000, ...over };
}

/**
 * Calls every method of the store at once, so Redis may receive the calls in any order. Needs the sessions, the server
 * and the leases that `populate` creates.
 */
function everything(store: Store): Record<string, Promise<unknown>> {
  return {
    readRegistry: store.registry.read(),
    updateRegistry: store.registry.update((draft) => void Object.assign(draft.servers, { late: serverRecord("late") })),
    readSession: store.sessions.read("a"),
    createSession: store.sessions.create(sessionRecord("late")),
    updateSession: store.sessions.update("a", (draft) => ++draft.turns),
    deleteSession: store.sessions.delete("b"),
    deleteSessions: store.sessions.deleteMany(["c"], () => true),
    listSessions: store.sessions.list(),
    acquireLease: store.leases.acquire(request("late", { sessionId: "b" })),
    leaveLeaseQueue: store.leases.leave("a", "t1"),
    renewLease: store.leases.renew("a", "t1", 600_000),
    releaseLease: store.leases.release("released", "t0"),
    readLease: store.leases.read("a"),
    checkLease: store.leases.check("a", "t1"),
    highestFence: store.leases.highestFence(),
  };
}

async function codes(calls: Record<string, Promise<unknown>>): Promise<Record<string, unknown>> {
  const entries = Object.entries(calls).map(async ([name, call]) => {
    const code = await call.then(
      () => "done",
      (error: { code?: unknown }) => error.code ?? String(error),
    );
    return [name, code] as const;
  });
  return Object.fromEntries(await Promise.all(entries));
}

/**
 * Creates three sessions, a server, and leases of "t0" on "released" and "t1" on "a". Resolves with the fence of "t1".
 */
async function populate(store: Store): Promise<number> {
  await store.registry.update((draft) => void Object.assign(draft.servers, { s1: serverRecord("s1") }));
  for (const id of ["a", "b", "c"]) await store.sessions.create(sessionRecord(id));
  await store.leases.acquire(request("t0", { sessionId: "released" }));
  const answer = await store.leases.acquire(request("t1"));
  if (!answer.granted) throw new Error("the lease is somebody else's");
  return answer.lease.fence;
}

/** The contents of the fleet's keys, without commit ids and writer locks. */
async function contents(redis: RedisServer, fleet: string): Promise<Record<string, string>> {
  const keys = (await redis.client.keys(`copilotfleet:{${fleet}}:*`)).filter((key) => !/:(commit:|turn)/.test(key));
  const dumps = await Promise.all(
    keys.sort().map(async (key) => [key, (await redis.client.dumpBuffer(key)).toString("hex")]),
  );
  return Object.fromEntries(dumps) as Record<string, string>;
}

describe.skipIf(problem !== undefined)("the Redis store", () => {
  describe("with a running Redis", () => {
    let redis: RedisServer;
    beforeAll(async () => {
      redis = await RedisServer.start();
    });
    afterAll(() => redis.end());

    async function open(url: string, { operationMs = 5_000, password = "" } = {}): Promise<Store> {
      const source = password === "" ? null : ({ from: "env", name: "PASSWORD" } as const);
      const secrets = { key: null, password: source, env: { PASSWORD: password } };
      const options = { operationMs, secrets };
      const store = openStore(url, await keyedRoot(), options);
      onTestFinished(() => store.close());
      return store;
    }

    it("every store call fails within 5 s, names the address and has no later effect when Redis stalls", async () => {
      const url = redis.url();
      const fleet = parsed(url).fleet;
      const store = await open(url);
      const fence = await populate(store);
      const before = await contents(redis, fleet);
      redis.signal("SIGSTOP");
      using took = new Stopwatch();
      const calls = everything(store);
      const failed = codes(calls);
      try {
        await expect(calls.readRegistry).rejects.toMatchObject({
          exit: 7,
          message: expect.stringContaining(`127.0.0.1:${redis.port}`),
          suggestions: expect.arrayContaining([`redis-cli -h 127.0.0.1 -p ${redis.port} PING`]),
        });
        for (const [name, code] of Object.entries(await failed)) expect(code, name).toBe("FLEET_STORE_UNAVAILABLE");
        expect(took.ms).toBeLessThan(BOUND_MS);
      } finally {
        redis.signal("SIGCONT");
      }
      // When Redis resumes, it first reads the commands that were sent during the stall, and refuses them as too late.
      expect(await store.leases.check("a", "t1")).toMatchObject({ fence });
      expect(await contents(redis, fleet)).toEqual(before);
      expect(await codes(everything(store))).toEqual(
        Object.fromEntries(Object.keys(calls).map((name) => [name, "done"])),
      );
    });

    it("store calls in flight when Redis stalls briefly take effect once, after it resumes", async () => {
      const store = await open(redis.url());
      await populate(store);
      redis.signal("SIGSTOP");
      const update = store.sessions.update("a", (draft) => ++draft.turns);
      const check = store.leases.check("a", "t1");
      await new Promise((resolve) => setTimeout(resolve, 300));
      redis.signal("SIGCONT");
      expect(await update).toBe(1);
      expect(await check).toMatchObject({ holder: "t1" });
      expect((await store.sessions.read("a"))?.turns).toBe(1);
    });

    it.each(["FLUSHALL", "FLUSHDB"])(
      "a Redis that was emptied by %s is reported as lost state, and is not treated as an empty pool",
      async (command) => {
        const url = redis.url();
        const root = await keyedRoot();
        const [store, other] = [openStore(url, root), openStore(url, root)];
        onTestFinished(async () => void (await Promise.all([store.close(), other.close()])));
        const fence = await populate(store);
        expect(await other.leases.read("a")).toMatchObject({ fence });
        await redis.client.call(command);

        for (const each of [store, other, openStore(url, root)]) {
          expect(await codes(everything(each))).toEqual({
            readRegistry: "FLEET_STATE_LOST",
            updateRegistry: "FLEET_STATE_LOST",
            readSession: "FLEET_STATE_LOST",
            createSession: "FLEET_STATE_LOST",
            updateSession: "FLEET_STATE_LOST",
            deleteSession: "FLEET_STATE_LOST",
            deleteSessions: "FLEET_STATE_LOST",
            listSessions: "FLEET_STATE_LOST",
            acquireLease: "FLEET_STATE_LOST",
            leaveLeaseQueue: "done",
            renewLease: "FLEET_LEASE_LOST",
            releaseLease: "FLEET_LEASE_LOST",
            readLease: "FLEET_STATE_LOST",
            checkLease: "FLEET_LEASE_LOST",
            highestFence: "FLEET_STATE_LOST",
          });
        }
        expect(await redis.client.dbsize()).toBe(0);

        // A host that is new to this database starts with an empty pool. Leases from before the loss stay invalid.
        const stranger = await open(url);
        const answer = await stranger.leases.acquire(request("t9"));
        expect(answer).toMatchObject({ granted: true });
        expect(answer.lease?.fence).toBeGreaterThan(fence);
        await expect(store.leases.check("a", "t1")).rejects.toMatchObject({ code: "FLEET_LEASE_LOST" });
        await expect(store.registry.read()).rejects.toMatchObject({ code: "FLEET_STATE_LOST", exit: 7 });
        await expect(other.leases.acquire(request("t2"))).rejects.toMatchObject({ code: "FLEET_STATE_LOST" });
      },
    );

    it.each([
      // The fleet did not write these texts, so they have no signature.
      ["a newer schema", "3 7-ab\n{}", "FLEET_STATE_UNSIGNED"],
      ["a text that is not JSON", "2 7-ab\n{", "FLEET_STATE_UNSIGNED"],
      ["JSON that is not an object", "2 7-ab\n[]", "FLEET_STATE_UNSIGNED"],
      ["no list of servers", "2 7-ab\n{}", "FLEET_STATE_UNSIGNED"],
      ["no first line", "{}", "FLEET_STATE_CORRUPT"],
      ["an empty text", "", "FLEET_STATE_CORRUPT"],
    ])("a registry in Redis with %s is refused and not changed", async (_, text, code) => {
      const url = redis.url();
      await populate(await open(url));
      const key = `copilotfleet:{${parsed(url).fleet}}:registry:`;
      await redis.client.set(key, text);
      const store = await open(url);
      await expect(store.registry.read()).rejects.toMatchObject({ code });
      await expect(store.registry.update((draft) => void Object.assign(draft, { placed: 1 }))).rejects.toMatchObject({
        code,
      });
      expect(await redis.client.get(key)).toBe(text);
    });

    it("a Redis key of the wrong type is not read as a session record, and a newer format of the epoch makes every call fail", async () => {
      const url = redis.url();
      const { fleet } = parsed(url);
      await populate(await open(url));
      await redis.client.del(`copilotfleet:{${fleet}}:session:a`);
      await redis.client.rpush(`copilotfleet:{${fleet}}:session:a`, "x");
      const store = await open(url);
      await expect(store.sessions.create(sessionRecord("a"))).rejects.toMatchObject({ code: "FLEET_SESSION_EXISTS" });
      await expect(store.sessions.update("a", () => 1)).rejects.toMatchObject({ code: "FLEET_SESSION_NOT_FOUND" });
      await redis.client.set(`copilotfleet:{${fleet}}:epoch`, "3 whatever-it-will-be");
      const refused = await codes(everything(await open(url)));
      expect(new Set(Object.values(refused))).toEqual(new Set(["FLEET_PROTOCOL_UNSUPPORTED"]));
    });

    it("an unreadable session record in Redis can only be deleted, and list fails unless told to skip it", async () => {
      const url = redis.url();
      const store = await open(url);
      await populate(store);
      await redis.client.set(`copilotfleet:{${parsed(url).fleet}}:session:a`, "2 1-ab\n{");
      for (const call of [
        () => store.sessions.read("a"),
        () => store.sessions.update("a", () => 1),
        () => store.sessions.list(),
      ]) {
        await expect(call()).rejects.toMatchObject({ code: "FLEET_STATE_UNSIGNED" });
      }
      const unreadable: string[] = [];
      const readable = await store.sessions.list((id, { code }) => void unreadable.push(`${id} ${code}`));
      expect(readable.map(({ id }) => id).sort()).toEqual(["b", "c"]);
      expect(unreadable).toEqual(["a FLEET_STATE_UNSIGNED"]);
      expect(await store.sessions.delete("a")).toBe(true);
      expect((await store.sessions.list()).map(({ id }) => id).sort()).toEqual(["b", "c"]);
    });

    it("a full Redis refuses writes without partial effect, but allows renewals, releases and deletions", async () => {
      const url = redis.url();
      const fleet = parsed(url).fleet;
      const store = await open(url);
      const fence = await populate(store);
      await store.leases.acquire(request("t2", { sessionId: "b" }));
      const before = await contents(redis, fleet);
      await redis.client.config("SET", "maxmemory", "1mb");
      try {
        for (const call of [
          () => store.registry.update((draft) => void delete draft.servers.s1),
          () => store.sessions.create(sessionRecord("d")),
          () => store.sessions.update("a", (draft) => ++draft.turns),
        ]) {
          await expect(call()).rejects.toMatchObject({
            code: "FLEET_STATE_UNWRITABLE",
            exit: 7,
            message: expect.stringContaining("OOM"),
            suggestions: [expect.stringContaining("maxmemory")],
          });
        }
        expect(await contents(redis, fleet)).toEqual(before);
        expect(await store.leases.renew("a", "t1", 600_000)).toMatchObject({ fence });
        expect(await store.leases.acquire(request("t3"))).toMatchObject({ granted: false, ahead: 0 });
        await store.leases.release("b", "t2");
        expect(await store.sessions.delete("c")).toBe(true);
        expect(await store.sessions.deleteMany(["b"], () => true)).toEqual(["b"]);
        expect((await store.sessions.list()).map(({ id }) => id)).toEqual(["a"]);
      } finally {
        await redis.client.config("SET", "maxmemory", "0");
      }
      await store.sessions.create(sessionRecord("d"));
    });

    it("a host keeps its term and can leave while Redis is full", async () => {
      const store = openStore(redis.url(), await keyedRoot(), { host: "h1", instance: () => "i1" });
      onTestFinished(() => store.close());
      const { hosts } = store;
      if (hosts === null) throw new Error("the store knows no hosts");
      const entry: HostEntry = { door: null, state: "serving", startedAt: "2026-01-01T00:00:00.000Z", storage: null };
      const { term } = await hosts.beat("i1", entry, 60_000);
      await redis.client.config("SET", "maxmemory", "1mb");
      onTestFinished(async () => void (await redis.client.config("SET", "maxmemory", "0")));
      expect(await hosts.beat("i1", { ...entry, state: "draining" }, 60_000)).toMatchObject({ term, gone: false });
      expect(await hosts.list()).toMatchObject([{ name: "h1", state: "draining", term, gone: false }]);
      await hosts.leave("i1");
      expect(await hosts.list()).toMatchObject([{ name: "h1", gone: true }]);
    });

    it.each(["allkeys-lru", "volatile-ttl"])(
      "a Redis that evicts keys (%s) is refused, and the error contains the command that fixes it",
      async (policy) => {
        await redis.client.config("SET", "maxmemory-policy", policy);
        const store = await open(redis.url());
        try {
          const refused = await codes(everything(store));
          expect(new Set(Object.values(refused))).toEqual(new Set(["FLEET_STORE_UNUSABLE"]));
          const error = (await store.registry.read().catch((each: unknown) => each)) as {
            exit: number;
            suggestions: string[];
          };
          expect(error.exit).toBe(3);
          const argv = error.suggestions[0]?.split(" ").slice(6) ?? [];
          expect(error.suggestions[0]).toBe(
            `redis-cli -h 127.0.0.1 -p ${redis.port} CONFIG SET maxmemory-policy noeviction`,
          );
          await redis.client.call("CONFIG", ...argv);
        } finally {
          await redis.client.config("SET", "maxmemory-policy", "noeviction");
        }
        expect(await store.registry.read()).toEqual({ servers: {} });
      },
    );

    it("a wrong Redis password is refused and appears nowhere in the error", async () => {
      await redis.client.call("ACL", "SETUSER", "fleet", "on", ">right-canary", "~*", "+@all", "-@dangerous", "+keys");
      const url = redis.url();
      const withUser = (password: string) => open(url.replace("redis://", "redis://fleet@"), { password });
      const wrong = await withUser("wrong-canary");
      const error = (await wrong.registry.read().catch((each: unknown) => each)) as Error & { suggestions: string[] };
      expect(error).toMatchObject({ code: "FLEET_STORE_UNUSABLE", exit: 3 });
      const shown = JSON.stringify([error.message, error.suggestions, error.stack, String(error.cause), error.cause]);
      expect(shown + Object.values(Object(error.cause)).map(String).join()).not.toContain("canary");

      // Managed services forbid INFO and CONFIG. The store works without them and warns about what it could not check.
      const store = await withUser("right-canary");
      await populate(store);
      expect(store.takeWarnings()).toEqual([expect.stringContaining("INFO is forbidden")]);
      expect(store.takeWarnings()).toEqual([]);
      // This user may not use channels either, so writers that wait for the writer lock get no notification and poll.
      const stores = [store, await withUser("right-canary"), await withUser("right-canary")];
      await Promise.all(
        Array.from({ length: 30 }, (_, index) =>
          stores[index % 3]?.registry.update((draft) => Object.assign(draft, { placed: (draft.placed ?? 0) + 1 })),
        ),
      );
      expect((await store.registry.read()).placed).toBe(30);
    });

    it("a Redis user with exactly the rights in docs/redis.md can do everything that the store needs", async () => {
      const text = await readFile(new URL("../../docs/redis.md", import.meta.url), "utf8");
      const rule = /^ACL SETUSER fleet on >PASSWORD (.*)$/m.exec(text)?.[1]?.split(" ") ?? [];
      expect(rule.length).toBeGreaterThan(5);
      await redis.client.call("ACL", "SETUSER", "limited", "reset", "on", ">secret", ...rule);
      const url = redis.url().replace("redis://", "redis://limited@");
      const stores = await Promise.all([1, 2, 3].map(() => open(url, { password: "secret" })));
      await populate(stores[0] ?? (await open(url, { password: "secret" })));
      const done = await Promise.all(stores.map(async (store) => await codes(everything(store))));
      for (const code of done.flatMap((each) => Object.values(each))) {
        expect(["done", "FLEET_SESSION_EXISTS", "FLEET_LEASE_LOST"]).toContain(code);
      }
      for (const store of stores) expect(store.takeWarnings()).toEqual([]);
      const log = (await redis.client.call("ACL", "LOG")) as unknown[];
      expect(JSON.stringify(log)).not.toContain('"limited"');
    });
  });

  describe("with a Redis that dies", () => {
    async function started(settings: readonly string[]): Promise<RedisServer> {
      const redis = await RedisServer.start(settings);
      onTestFinished(() => redis.end());
      return redis;
    }

    it("no acknowledged change and no lease is lost when Redis is killed and comes back with its data", async () => {
      const redis = await started(["--appendonly", "yes", "--appendfsync", "always", "--save", ""]);
      const root = await keyedRoot();
      const [store, other] = [openStore(redis.url("f"), root), openStore(redis.url("f"), root)];
      onTestFinished(async () => void (await Promise.all([store.close(), other.close()])));
      const fence = await populate(store);
      await other.leases.acquire(request("t2"));
      let acked = 0;
      let done = false;
      const counting = (async () => {
        while (!done) {
          await store.sessions.update("b", (draft) => ++draft.turns);
          acked++;
        }
      })();
      for (let round = 0; round < 3; round++) {
        const before = acked;
        await eventually("some changes", () => acked > before + 5);
        await redis.kill();
        await redis.run();
      }
      done = true;
      await counting;
      expect((await other.sessions.read("b"))?.turns).toBe(acked);
      expect(await store.leases.check("a", "t1")).toMatchObject({ fence });
      expect(await other.leases.acquire(request("t2"))).toMatchObject({ granted: false, ahead: 0 });
      const stolen = await other.leases.acquire(request("t2", { steal: { reason: "to see its fence" } }));
      expect(stolen.lease?.fence).toBeGreaterThan(fence);
      expect([...store.takeWarnings(), ...other.takeWarnings()]).toEqual([]);
    });

    it("open and new stores detect that Redis was killed and came back without its data", async () => {
      const redis = await started(["--appendonly", "no", "--save", ""]);
      const root = await keyedRoot();
      const store = openStore(redis.url("f"), root);
      onTestFinished(() => store.close());
      const fence = await populate(store);
      expect(store.takeWarnings()).toEqual([expect.stringContaining("keeps nothing on disk")]);
      await redis.kill();
      await redis.run();
      await expect(store.leases.check("a", "t1")).rejects.toMatchObject({ code: "FLEET_LEASE_LOST" });
      await expect(store.registry.update(() => 1)).rejects.toMatchObject({ code: "FLEET_STATE_LOST" });
      const next = openStore(redis.url("f"), root);
      onTestFinished(() => next.close());
      await expect(next.leases.acquire(request("t2"))).rejects.toMatchObject({ code: "FLEET_STATE_LOST" });
      const stranger = openStore(redis.url("f"), await keyedRoot());
      onTestFinished(() => stranger.close());
      const answer = await stranger.leases.acquire(request("t3"));
      expect(answer.lease?.fence).toBeGreaterThan(fence);
    });

    it("the store warns when Redis comes back with old data, and reuses no fence", async () => {
      const redis = await started(["--appendonly", "no", "--save", "3600 1"]);
      const store = openStore(redis.url("f"), await keyedRoot());
      onTestFinished(() => store.close());
      await populate(store);
      await redis.client.save();
      await store.registry.update((draft) => void Object.assign(draft.servers, { s2: serverRecord("s2") }));
      await store.leases.release("a", "t1");
      const later = await store.leases.acquire(request("t2"));
      await redis.kill();
      await redis.run();
      expect(Object.keys((await store.registry.read()).servers)).toEqual(["s1"]);
      expect(store.takeWarnings()).toEqual([
        expect.stringContaining("is older than one that this host has read before"),
      ]);
      await expect(store.leases.check("a", "t2")).rejects.toMatchObject({ code: "FLEET_LEASE_LOST" });
      const next = await store.leases.acquire(request("t3", { steal: { reason: "the old holder is back" } }));
      expect(next.lease?.fence).toBeGreaterThan(later.lease?.fence ?? Number.NaN);
    });

    it("calls fail in time when Redis is gone for good, and a new store's first call fails at once", async () => {
      const redis = await started([]);
      const store = openStore(redis.url("f"), await keyedRoot(), { operationMs: SHORT_MS });
      onTestFinished(() => store.close());
      await populate(store);
      await redis.kill();
      const failed = await codes(everything(store));
      expect(new Set(Object.values(failed))).toEqual(new Set(["FLEET_STORE_UNAVAILABLE"]));
      using took = new Stopwatch();
      const late = openStore(redis.url("f"), await keyedRoot());
      await expect(late.registry.read()).rejects.toMatchObject({
        code: "FLEET_STORE_UNAVAILABLE",
        message: expect.stringMatching(new RegExp(`127\\.0\\.0\\.1:${redis.port} .*ECONNREFUSED`)),
      });
      expect(took.ms).toBeLessThan(2_000);
      await late.close();
    });
  });

  it("the store warns when Redis has a replica or is a replica, and refuses to write to a replica", async () => {
    const primary = await RedisServer.start();
    onTestFinished(() => primary.end());
    const replica = await RedisServer.start(["--replicaof", "127.0.0.1", String(primary.port), "--appendonly", "yes"]);
    onTestFinished(() => replica.end());
    await eventually("the replica", async () => /connected_slaves:1/.test(await primary.client.info("replication")));
    const store = openStore(primary.url("f"), await keyedRoot());
    onTestFinished(() => store.close());
    await populate(store);
    expect(store.takeWarnings()).toEqual([expect.stringContaining("has replicas")]);
    const other = openStore(replica.url("f"), await keyedRoot());
    onTestFinished(() => other.close());
    await eventually("the copy", async () => Object.keys((await other.registry.read()).servers)[0] === "s1");
    expect(other.takeWarnings()).toEqual([expect.stringContaining("is a replica")]);
    for (const write of [
      () => other.registry.update((draft) => void delete draft.servers.s1),
      () => other.sessions.create(sessionRecord("d")),
      () => other.leases.acquire(request("t2", { steal: { reason: "x" } })),
    ]) {
      await expect(write()).rejects.toMatchObject({
        code: "FLEET_STATE_UNWRITABLE",
        message: expect.stringContaining("READONLY"),
      });
    }
  });

  it("writes during a Redis failover take effect once at the new primary, or are refused in time", async () => {
    // By default, Redis 7 delays a replica's sync for 5 s in case more replicas connect.
    const old = await RedisServer.start(["--appendonly", "yes", "--repl-diskless-sync-delay", "0"]);
    onTestFinished(() => old.end());
    const next = await RedisServer.start(["--replicaof", "127.0.0.1", String(old.port), "--appendonly", "yes"]);
    onTestFinished(() => next.end());
    const address = await CuttingProxy.start(old.port);
    onTestFinished(() => address.end());
    const url = old.url("f").replace(String(old.port), String(address.port));
    const store = openStore(url, await keyedRoot(), { operationMs: 2_000 });
    onTestFinished(() => store.close());
    const fence = await populate(store);
    // This store has a high time limit, for operations that must succeed in the end, however slow the machine is.
    const patient = openStore(url, await keyedRoot(), { operationMs: 20_000 });
    onTestFinished(() => patient.close());
    expect(await patient.sessions.update("a", (draft) => ++draft.turns)).toBe(1);
    expect(await old.client.wait(1, 10_000)).toBe(1);

    await next.client.replicaof("NO", "ONE");
    await old.client.replicaof("127.0.0.1", next.port);
    using took = new Stopwatch();
    // The address still leads to the old primary.
    await expect(store.sessions.update("a", (draft) => ++draft.turns)).rejects.toMatchObject({
      code: "FLEET_STATE_UNWRITABLE",
      exit: 7,
      message: expect.stringContaining("READONLY"),
    });
    expect(took.ms).toBeLessThan(2_000 + 1_000);
    const under = [
      patient.sessions.update("a", (draft) => ++draft.turns),
      patient.registry.update((draft) => {
        draft.placed = (draft.placed ?? 0) + 1;
        return draft.placed;
      }),
      patient.leases.renew("a", "t1", 600_000),
    ];
    await new Promise((resolve) => setTimeout(resolve, 500));
    address.target = next.port;
    expect(await Promise.all(under)).toEqual([2, 1, expect.objectContaining({ fence })]);
    expect((await store.sessions.read("a"))?.turns).toBe(2);
    expect(await store.sessions.update("a", (draft) => ++draft.turns)).toBe(3);
    const direct = openStore(next.url("f"), await keyedRoot());
    onTestFinished(() => direct.close());
    expect((await direct.sessions.read("a"))?.turns).toBe(3);
    expect((await direct.registry.read()).placed).toBe(1);
  });

  it.skipIf(spawnSync("openssl", ["version"]).error !== undefined)(
    "the store connects to Redis over TLS only if it trusts the certificate",
    async () => {
      const root = await keyedRoot();
      const folder = dirname(root);
      const [key, cert, tlsPort] = [join(folder, "key.pem"), join(folder, "cert.pem"), String(await freePort())];
      const made = spawnSync("openssl", [
        ...["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"],
        ...["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert],
      ]);
      expect(made.status, String(made.stderr)).toBe(0);
      const redis = await RedisServer.start([
        ...["--tls-port", tlsPort, "--tls-cert-file", cert, "--tls-key-file", key],
        ...["--tls-auth-clients", "no", "--appendonly", "yes"],
      ]);
      onTestFinished(() => redis.end());
      const run = (env: NodeJS.ProcessEnv) =>
        spawnSync(process.execPath, [program, `rediss://localhost:${tlsPort}/0?fleet=f`, root], {
          env: { PATH: process.env.PATH, ...env },
          encoding: "utf8",
        });
      const store = openStore(redis.url("f"), await keyedRoot());
      await populate(store);
      await store.close();
      expect(JSON.parse(run({ NODE_EXTRA_CA_CERTS: cert }).stdout)).toMatchObject({ servers: { s1: { id: "s1" } } });
      const refused = run({});
      expect(refused).toMatchObject({ status: 1, stdout: "" });
      expect(refused.stderr).toMatch(/FLEET_STORE_UNAVAILABLE/);
      expect(refused.stderr).toMatch(/self-signed certificate/);
    },
  );
});

import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { HostEntry } from "../../src/base/host.js";
import type { HostTable } from "../../src/store/hosts.js";
import type { Store } from "../../src/store/store.js";
import { openStore } from "../../src/store/store.js";
import { requestLines } from "../contract/usage.contract.js";
import { unused } from "../fixtures/sessions/unused.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { serverRecord } from "../fixtures/store/store-records.js";
import { keyedRoot } from "../fixtures/store/store-root.js";

const ENTRY: HostEntry = {
  door: "10.0.0.1:4300",
  state: "serving",
  startedAt: "2026-01-01T00:00:00.000Z",
  storage: null,
};
const TTL_MS = 60_000;
const problem = redisProblem();
if (problem !== undefined) console.warn(`the directory of hosts is not tested: ${problem}`);

describe.skipIf(problem !== undefined)("the directory of hosts", () => {
  let redis: RedisServer;
  const stores: Store[] = [];

  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(async () => {
    await Promise.all(stores.map((store) => store.close()));
    await redis.end();
  });

  async function open(url: string, host: string): Promise<Store & { hosts: HostTable }> {
    const store = openStore(url, await keyedRoot(), { host: host });
    stores.push(store);
    if (store.hosts === null) throw new Error("the store knows no hosts");
    return store as Store & { hosts: HostTable };
  }

  it("hosts are listed from their first heartbeat on, sorted by name", async () => {
    const url = redis.url();
    const [b, a] = [await open(url, "b"), await open(url, "a")];
    expect(await a.hosts.list()).toEqual([]);
    await b.hosts.beat("two", ENTRY, TTL_MS);
    const own = await a.hosts.beat("one", { ...ENTRY, door: null }, TTL_MS);
    expect(own).toMatchObject({ name: "a", instance: "one", door: null, gone: false });
    expect(await b.hosts.list()).toMatchObject([
      { ...own, remainingMs: expect.any(Number) },
      { ...ENTRY, name: "b", instance: "two", gone: false },
    ]);
    for (const { remainingMs } of await b.hosts.list()) {
      expect(remainingMs).toBeGreaterThan(TTL_MS / 2);
      expect(remainingMs).toBeLessThanOrEqual(TTL_MS);
    }
  });

  it("a host keeps its term while its heartbeats are in time, and gets a higher term after a late one", async () => {
    const store = await open(redis.url(), "a");
    const first = await store.hosts.beat("one", ENTRY, TTL_MS);
    expect((await store.hosts.beat("one", { ...ENTRY, state: "draining" }, 80)).term).toBe(first.term);
    expect(await store.hosts.list()).toMatchObject([{ state: "draining", term: first.term }]);
    await expect
      .poll(() => store.hosts.list())
      .toMatchObject([{ name: "a", gone: true, remainingMs: 0, term: first.term }]);
    expect((await store.hosts.beat("one", ENTRY, TTL_MS)).term).toBeGreaterThan(first.term);
  });

  it("a host gets a higher term when another instance takes its name, and when its entry was lost", async () => {
    const fleet = unused("terms");
    const store = await open(redis.url(fleet), "a");
    const terms: number[] = [(await store.hosts.beat("one", ENTRY, TTL_MS)).term];
    await store.hosts.leave("one");
    terms.push((await store.hosts.beat("two", ENTRY, TTL_MS)).term);
    await redis.client.del(`copilotfleet:{${fleet}}:host:a`);
    terms.push((await store.hosts.beat("two", ENTRY, TTL_MS)).term);
    expect(terms).toEqual([...new Set(terms)].sort((x, y) => x - y));
  });

  it("a second instance under a host's name is refused until the first has left", async () => {
    const store = await open(redis.url(), "a");
    const { term } = await store.hosts.beat("one", ENTRY, TTL_MS);
    const refusal = { code: "FLEET_SUPERVISOR_RUNNING", message: expect.stringContaining("10.0.0.1:4300") };
    await expect(store.hosts.beat("two", ENTRY, TTL_MS)).rejects.toMatchObject(refusal);
    await store.hosts.leave("two");
    expect(await store.hosts.list()).toMatchObject([{ instance: "one", term, gone: false }]);
    await store.hosts.leave("one");
    expect(await store.hosts.list()).toMatchObject([{ instance: "one", gone: true }]);
    expect(await store.hosts.beat("two", ENTRY, TTL_MS)).toMatchObject({ instance: "two", gone: false });
  });

  it("forget removes a host only after the host has left", async () => {
    const store = await open(redis.url(), "a");
    await store.hosts.beat("one", ENTRY, TTL_MS);
    expect(await store.hosts.forget("a")).toBe(false);
    expect(await store.hosts.list()).toHaveLength(1);
    await store.hosts.leave("one");
    expect(await store.hosts.forget("a")).toBe(true);
    expect(await store.hosts.forget("a")).toBe(false);
    expect(await store.hosts.list()).toEqual([]);
  });

  it("the usage that a host recorded last counts on the other hosts once it has closed its store", async () => {
    const url = redis.url();
    const [a, b] = [await open(url, "a"), await open(url, "b")];
    a.usage.append(requestLines("1"));
    await a.close();
    expect(await b.usage.tokensSince("ann", Date.now())).toBe(15);
  });

  it("each host has its own registry, which the other hosts can read", async () => {
    const url = redis.url();
    const [a, b] = [await open(url, "a"), await open(url, "b")];
    await a.registry.update((draft) => void Object.assign(draft.servers, { s1: serverRecord("s1") }));
    await b.registry.update(
      (draft) => void Object.assign(draft.servers, { s1: serverRecord("s1"), s2: serverRecord("s2") }),
    );
    expect(Object.keys((await a.registry.read()).servers)).toEqual(["s1"]);
    expect(Object.keys((await b.registry.read()).servers)).toEqual(["s1", "s2"]);
    expect(await a.hosts.registryOf("b")).toEqual(await b.registry.read());
    expect(await a.hosts.registryOf("c")).toEqual({ servers: {} });
    // Another process of the same host reads the same registry.
    expect(await (await open(url, "a")).registry.read()).toEqual(await a.registry.read());
  });
});

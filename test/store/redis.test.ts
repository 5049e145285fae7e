import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, onTestFinished, vi } from "vitest";
import { openStore } from "../../src/store/store.js";
import { describeStore } from "../contract/store.contract.js";
import { requestLines } from "../contract/usage.contract.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

const HOUR_MS = 3_600_000;
const problem = redisProblem();
if (problem !== undefined) console.warn(`the store contract on Redis is skipped: ${problem}`);

describe.skipIf(problem !== undefined)("on a real Redis", () => {
  let redis: RedisServer;

  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(() => redis.end());

  it("after limits.forget, the store writes nothing more about the user, even if a slot is still held", async () => {
    const root = await mkdtemp(join(tmpdir(), "copilotfleet-store-"));
    vi.useFakeTimers({ toFake: ["setInterval", "clearInterval"] });
    const store = openStore(redis.url(), root);
    onTestFinished(async () => {
      vi.useRealTimers();
      await store.close();
      await rm(root, { recursive: true, force: true });
    });
    const held = { user: "forgotten", kind: "turn", id: "held", most: 1, perMinute: 1 } as const;
    expect(await store.limits.take(held)).toEqual({ granted: true });
    await store.limits.isFirst("forgotten", "tokensPerDay", 1);
    await store.limits.forget("forgotten");
    // Run the timer by which a process renews its slots. Redis answers a renewal before it answers `used`.
    vi.advanceTimersByTime(60_000);
    await store.limits.used("forgotten");
    expect(await redis.client.keys("*forgotten*")).toEqual([]);
  });

  describeStore("redis", async () => {
    const root = await mkdtemp(join(tmpdir(), "copilotfleet-store-"));
    const url = redis.url();
    return {
      store: openStore(url, root),
      reopen: async () => openStore(url, root),
      cleanup: () => rm(root, { recursive: true, force: true }),
    };
  });

  it("upkeep deletes lines of the ledger after two days, and their sums after the retention", async () => {
    const root = await mkdtemp(join(tmpdir(), "copilotfleet-store-"));
    const url = redis.url();
    const store = openStore(url, root);
    const hour = Math.floor(Date.now() / HOUR_MS) - 72;
    const at = new Date(hour * HOUR_MS + 1_000).toISOString();
    store.usage.append([...requestLines("old", { at }), ...requestLines("new")]);
    const requestsSince = async (from: number) => {
      const parts = await store.usage.read({ from, to: Date.now() + HOUR_MS, by: "user" });
      return parts.reduce((sum, { requests }) => sum + requests, 0);
    };
    expect(await requestsSince(Date.parse(at) + 1)).toBe(1);
    const keys = async (name: string) => (await redis.client.keys(`*:ledger-${name}:${hour}`)).length;
    await store.usage.upkeep(400 * 24 * HOUR_MS);
    expect([await keys("lines"), await keys("sums")]).toEqual([0, 1]);
    // The old hour has no more lines, so it counts as a whole.
    expect(await requestsSince(Date.parse(at) + 1)).toBe(2);
    expect(await requestsSince((hour + 1) * HOUR_MS)).toBe(1);
    await store.usage.upkeep(48 * HOUR_MS);
    expect(await keys("sums")).toBe(0);
    expect(await requestsSince(0)).toBe(1);
    await store.close();
    await rm(root, { recursive: true, force: true });
  });

  it("all hosts get the same pseudonym key, even if each offers a different key at the same time", async () => {
    const root = await mkdtemp(join(tmpdir(), "copilotfleet-store-"));
    const url = redis.url();
    const hosts = ["a", "b", "c", "d"].map((offered) => ({ store: openStore(url, root), offered: offered.repeat(64) }));
    const keys = await Promise.all(hosts.map(async ({ store, offered }) => await store.pseudonymKey(offered)));
    expect(new Set(keys).size).toBe(1);
    expect(hosts.map(({ offered }) => offered)).toContain(keys[0]);
    for (const { store } of hosts) await store.close();
    await rm(root, { recursive: true, force: true });
  });
});

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it, onTestFinished, vi } from "vitest";
import { openStore } from "../../src/store/store.js";
import { describeStore } from "../contract/store.contract.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";

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

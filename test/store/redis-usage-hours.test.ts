import { afterAll, beforeAll, beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { readRedisUrl } from "../../src/config/values/redis-url.js";
import { dayOf, hourOf, hourStart, type LedgerLine, USAGE_BY, type UsagePart } from "../../src/model/usage/usage.js";
import { openStore } from "../../src/store/open.js";
import type { Store } from "../../src/store/ports.js";
import { Connection } from "../../src/store/redis/link/connection.js";
import { keysOf } from "../../src/store/redis/link/keys.js";
import { DROP_LINES, SAVE_SUMS, USAGE_CELLS } from "../../src/store/redis/scripts/usage-scripts.js";
import { requestLines } from "../contract/usage.contract.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const HOUR_MS = 3_600_000;
const YEAR_MS = 365 * 24 * HOUR_MS;
const all = { from: 0, to: Date.now() + HOUR_MS };

describe.skipIf(redisProblem() !== undefined)("the hours of the ledger in Redis", () => {
  let redis: RedisServer;
  let root: string;
  let url: string;
  let keys: ReturnType<typeof keysOf>;
  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(async () => await redis.end());
  beforeEach(async () => {
    root = await temporaryRoot();
    url = redis.url();
    keys = keysOf(String(readRedisUrl(url)?.fleet), null);
  });

  const open = (): Store => {
    const store = openStore(url, root);
    onTestFinished(async () => await store.close());
    return store;
  };
  const sorted = (parts: UsagePart[]) => parts.map((part) => JSON.stringify(part)).sort();
  const requests = async (store: Store, query: { from: number; to: number } = all) =>
    (await store.usage.read({ ...query, by: "user" })).reduce((sum, part) => sum + part.requests, 0);
  const isAddedUp = async (hour: number) => {
    const [lines, added] = await Promise.all([
      redis.client.llen(keys.usageLines(hour)),
      redis.client.hget(keys.usageSums(hour), "lines"),
    ]);
    return lines > 0 && lines === Number(added);
  };
  /** All keys of the fleet with all of their contents. */
  const everything = async () => {
    const names = await redis.client.keys(keys.founding.replace("registry", "*").replace(/[{}]/g, "\\$&"));
    return Object.fromEntries(await Promise.all(names.map(async (key) => [key, await contentOf(key)] as const)));
  };
  const contentOf = async (key: string) => {
    const kind = await redis.client.type(key);
    if (kind === "hash") return await redis.client.hgetall(key);
    if (kind === "list") return await redis.client.lrange(key, 0, -1);
    return kind === "string" ? await redis.client.get(key) : null;
  };
  /** Calls back once, before the script runs. */
  const before = (script: typeof SAVE_SUMS, call: () => Promise<unknown>) => {
    const { run } = Connection.prototype;
    let isFirst = true;
    const spy = vi.spyOn(Connection.prototype, "run").mockImplementation(async function (this: Connection, ...args) {
      if (args[0] === script && isFirst) {
        isFirst = false;
        await call();
      }
      return await run.apply(this, args);
    });
    onTestFinished(() => spy.mockRestore());
    return () => !isFirst;
  };

  it("answers the same from lines and from sums, also after more lines and in other processes", async () => {
    const hour = hourStart(hourOf(Date.now()));
    const lines: LedgerLine[] = [];
    const write = (store: Store, first: number, last: number) => {
      for (let index = first; index < last; index++) {
        const at = new Date(hour - (index % 100) * 7 * 60_000 - index).toISOString();
        const [user, sessionId] = [`u${index % 3}`, `s${index % 7}`];
        const model = index % 2 === 0 ? "gpt-5" : null;
        const added = requestLines(String(index), {
          at,
          user,
          sessionId,
          model,
          tokenId: index % 5 === 0 ? "k" : null,
        });
        store.usage.append(added);
        lines.push(...added);
      }
    };
    const queries = USAGE_BY.flatMap((by) => [
      { ...all, by },
      { ...all, by, user: "u1" },
      { by, from: hour - 7.31 * HOUR_MS, to: hour - 2.22 * HOUR_MS },
      { by, from: hour - 1.5 * HOUR_MS, to: hour - 1.25 * HOUR_MS },
    ]);
    const read = async (store: Store) =>
      await Promise.all(queries.map(async (query) => sorted(await store.usage.read(query))));
    const one = open();
    write(one, 0, 300);
    const first = await read(one);
    expect(await isAddedUp(hourOf(hour) - 2)).toBe(true);
    expect(await read(one)).toEqual(first);
    expect(await read(open())).toEqual(first);
    write(one, 300, 500);
    const second = await read(open());
    const other = openStore(redis.url(), await temporaryRoot());
    onTestFinished(async () => await other.close());
    other.usage.append(lines);
    expect(second).toEqual(await read(other));
    await one.usage.upkeep(YEAR_MS);
    expect(await read(one)).toEqual(second);
  });

  it("adds up many lines without a query", async () => {
    const { usage } = open();
    const at = new Date().toISOString();
    usage.append(Array.from({ length: 1_200 }, (_, index) => requestLines(String(index), { at })).flat());
    await usage.settled();
    expect(Number(await redis.client.hget(keys.usageSums(hourOf(at)), "lines"))).toBeGreaterThan(1_000);
  });

  it("deletes the lines of old hours, counts such an hour as a whole, and adds late lines to it", async () => {
    const store = open();
    const hour = hourOf(Date.now()) - 60;
    const at = (minute: number) => new Date(hourStart(hour) + minute * 60_000).toISOString();
    store.usage.append([...requestLines("1", { at: at(10) }), ...requestLines("2", { at: at(50) })]);
    const second = { from: hourStart(hour) + 30 * 60_000, to: hourStart(hour + 1) };
    expect(await requests(store, second)).toBe(1);
    await store.usage.upkeep(YEAR_MS);
    expect(await redis.client.exists(keys.usageLines(hour))).toBe(0);
    expect(await requests(store, second)).toBe(2);
    expect(await requests(store, { from: hourStart(hour - 1), to: hourStart(hour) })).toBe(0);
    expect(await requests(store)).toBe(2);
    store.usage.append(requestLines("3", { at: at(5) }));
    expect(await requests(store)).toBe(3);
    expect(await isAddedUp(hour)).toBe(true);
    expect(await requests(store, second)).toBe(3);
    await store.usage.upkeep(YEAR_MS);
    expect(await redis.client.exists(keys.usageLines(hour))).toBe(0);
    expect(await requests(open())).toBe(3);
  });

  it("deletes everything of hours that are too old, and the cells of a day with its last hour", async () => {
    const store = open();
    const day = hourOf(Date.now()) - (hourOf(Date.now()) % 24) - 48;
    const at = (hour: number) => new Date(hourStart(day + hour)).toISOString();
    store.usage.append([...requestLines("1", { at: at(3) }), ...requestLines("2", { at: at(20) })]);
    expect(await requests(store)).toBe(2);
    await store.usage.upkeep(Date.now() - hourStart(day + 10));
    expect(await requests(store)).toBe(1);
    expect(await redis.client.exists(keys.usageCells(dayOf(at(0))))).toBe(1);
    await store.usage.upkeep(Date.now() - hourStart(day + 30));
    expect(await requests(store)).toBe(0);
    const left = Object.keys(await everything()).filter((key) => key.includes(":usage-"));
    expect(left.sort()).toEqual([keys.usageRead, keys.usageTokens(dayOf(at(0)))]);
  });

  it("leaves no name when another process adds up lines that it has read before a rename", async () => {
    const one = open();
    const other = open();
    const at = new Date(Date.now() - 2 * HOUR_MS).toISOString();
    one.usage.append(requestLines("1", { at, user: "canary", sessionId: "canary-session" }));
    await one.usage.settled();
    const names = { users: new Map([["canary", "~1"]]), sessions: new Map([["canary-session", "~2"]]) };
    const wasCalled = before(SAVE_SUMS, async () => await one.usage.rename(names));
    await requests(other);
    expect(wasCalled()).toBe(true);
    expect((await one.usage.read({ ...all, by: "session" })).map(({ key }) => key)).toEqual(["~2"]);
    await one.usage.rename({ users: new Map([["ann", "~3"]]), sessions: new Map() });
    const tokens = await redis.client.hgetall(keys.usageTokens(dayOf(at)));
    expect(tokens).toEqual({ "~1": "15" });
    expect(JSON.stringify(await everything())).not.toContain("canary");
  });

  it("reads an hour again when the upkeep deletes its day while a query reads it", async () => {
    const store = open();
    const at = new Date(Date.now() - 100 * HOUR_MS).toISOString();
    store.usage.append([...requestLines("1", { at }), ...requestLines("2")]);
    expect(await requests(store)).toBe(2);
    const wasCalled = before(USAGE_CELLS, async () => await open().usage.upkeep(50 * HOUR_MS));
    expect(await requests(store)).toBe(1);
    expect(wasCalled()).toBe(true);
  });

  it("adds up lines once when two processes do so at the same time", async () => {
    const [one, other] = [open(), open()];
    const at = new Date(Date.now() - 2 * HOUR_MS).toISOString();
    one.usage.append(requestLines("1", { at }));
    await one.usage.settled();
    const wasCalled = before(SAVE_SUMS, async () => {
      expect(await requests(other)).toBe(1);
      other.usage.append(requestLines("2", { at, sessionId: "s2" }));
      expect(await requests(other)).toBe(2);
    });
    expect(await requests(one)).toBe(2);
    expect(wasCalled()).toBe(true);
    expect(await isAddedUp(hourOf(at))).toBe(true);
    expect(await requests(open())).toBe(2);
  });

  it("counts the hour again when its lines are deleted while a query reads some of them", async () => {
    const store = open();
    const hour = hourOf(Date.now()) - 60;
    const at = (second: number) => new Date(hourStart(hour) + second * 1_000).toISOString();
    store.usage.append([...requestLines("1", { at: at(1) }), ...requestLines("2", { at: at(50) })]);
    expect(await requests(store, { from: hourStart(hour) + 30_000, to: hourStart(hour + 1) })).toBe(1);
    const { run } = Connection.prototype;
    let isDropped = false;
    const spy = vi.spyOn(Connection.prototype, "run").mockImplementation(async function (this: Connection, ...args) {
      const answer = await run.apply(this, args);
      if (!isDropped && args[1].includes(keys.usageSums(hour)) && args[2].includes("minutes")) {
        isDropped = true;
        await run.call(this, DROP_LINES, [keys.usageSums(hour), keys.usageLines(hour), keys.usageLined], [hour, "v"]);
      }
      return answer;
    });
    onTestFinished(() => spy.mockRestore());
    expect(await requests(store, { from: hourStart(hour) + 30_000, to: hourStart(hour + 1) })).toBe(2);
    expect(isDropped).toBe(true);
  });

  it("counts lines that cannot be added up because Redis is full", async () => {
    const store = open();
    const at = new Date(Date.now() - 2 * HOUR_MS).toISOString();
    store.usage.append(requestLines("1", { at }));
    await store.usage.settled();
    await redis.client.config("SET", "maxmemory", "1");
    onTestFinished(async () => void (await redis.client.config("SET", "maxmemory", "0")));
    expect(await requests(store)).toBe(1);
    await redis.client.config("SET", "maxmemory", "0");
    expect(await isAddedUp(hourOf(at))).toBe(false);
    expect(await requests(store)).toBe(1);
    expect(await isAddedUp(hourOf(at))).toBe(true);
  });

  it.each([
    ["sums that are cut off", "usageSums", "hour"],
    ["cells that are gone", "usageCells", "cells"],
  ] as const)("names the key of %s, and adds nothing to them", async (_, name, field) => {
    const store = open();
    const at = new Date(Date.now() - 2 * HOUR_MS).toISOString();
    store.usage.append(requestLines("1", { at }));
    expect(await requests(store)).toBe(1);
    const key = name === "usageSums" ? keys.usageSums(hourOf(at)) : keys.usageCells(dayOf(at));
    await redis.client.hset(key, field, "");
    if (name === "usageSums") await redis.client.hset(key, field, '{"buckets":[');
    const damaged = { code: "FLEET_STATE_CORRUPT", message: expect.stringContaining(key) };
    await expect(requests(store)).rejects.toMatchObject(damaged);
    store.usage.append(requestLines("2", { at }));
    await store.usage.upkeep(YEAR_MS);
    expect(store.takeWarnings()).toEqual([expect.stringContaining(key)]);
    expect(await isAddedUp(hourOf(at))).toBe(false);
  });
});

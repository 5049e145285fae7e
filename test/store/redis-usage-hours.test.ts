import { EventEmitter, once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import {
  countsOf,
  dayOf,
  hourOf,
  hourStart,
  keyOf,
  type LedgerLine,
  USAGE_BY,
  type UsagePart,
  UsageParts,
} from "../../src/base/usage.js";
import { readRedisUrl } from "../../src/base/values/network.js";
import { openStore } from "../../src/store/file/file-store.js";
import type { Store } from "../../src/store/ports.js";
import { Connection } from "../../src/store/redis/connection.js";
import { keysOf } from "../../src/store/redis/failures.js";
import {
  DROP_LINES,
  RENAME_CELLS,
  RENAME_LINES,
  SAVE_SUMS,
  USAGE_CELLS,
  USAGE_HOUR,
} from "../../src/store/redis/scripts.js";
import { requestLines } from "../contract/usage.contract.js";
import { seededRandom } from "../fixtures/random.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const HOUR_MS = 3_600_000;
const YEAR_MS = 365 * 24 * HOUR_MS;
const all = { from: 0, to: Date.now() + HOUR_MS };

const { run } = Connection.prototype;

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
  /** Makes Redis refuse writes, as a full Redis does. */
  const fill = async () => {
    await redis.client.config("SET", "maxmemory", "1");
    onTestFinished(async () => void (await redis.client.config("SET", "maxmemory", "0")));
  };
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
  /** Returns a function that counts the runs of a script from now on. */
  const counted = (script: typeof SAVE_SUMS) => {
    const spy = vi.spyOn(Connection.prototype, "run");
    onTestFinished(() => spy.mockRestore());
    return () => spy.mock.calls.filter(([each]) => each === script).length;
  };
  const past = (hours: number) => new Date(Date.now() - hours * HOUR_MS).toISOString();
  /** Calls `call` before the next run of the script. The returned function returns whether that has happened. */
  const before = (script: typeof SAVE_SUMS, call: () => Promise<unknown>) => {
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

  it("a usage query gives the same answer from lines and from sums, in every process", async () => {
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

  it("usage sums are right after random appends, queries, renames and upkeep by several processes", async () => {
    const random = seededRandom("usage hours");
    const pick = <T>(...from: readonly T[]): T => from[Math.floor(random() * from.length)] as T;
    const stores = [open(), open(), open()];
    let lines: LedgerLine[] = [];
    const now = Date.now();
    const append = () => {
      const count = pick(1, 3, 40, 700);
      // Most lines are in a few hours. Some are so old that the upkeep deletes them.
      const before = pick(0.1, 2, 30, 70) * HOUR_MS;
      const added = Array.from({ length: count }, (_, index) => {
        const at = new Date(Math.floor(now - before - random() * pick(1, 100) * 60_000)).toISOString();
        const [user, sessionId] = [pick("u1", "u2", "u3"), pick("s1", "s2")];
        const model = pick("gpt-5", null);
        return requestLines(`${lines.length} ${index}`, { at, user, sessionId, model, tokenId: pick("k", null) });
      }).flat();
      for (const line of added) if (line.outcome === "completed" && random() < 0.5) line.credits = pick(0.25, 1.5);
      lines.push(...added);
      pick(...stores).usage.append(added);
    };
    const rename = async () => {
      const [user, after] = [pick("u1", "u2", "u3"), `~${lines.length}`];
      await Promise.all(stores.map(async (each) => await each.usage.settled()));
      await pick(...stores).usage.rename({ users: new Map([[user, after]]), sessions: new Map() });
      lines = lines.map((line) => (line.user === user ? { ...line, user: after } : line));
      expect(JSON.stringify(await everything())).not.toContain(`"${user}`);
    };
    const check = async () => {
      // The upkeep never deletes the lines of these hours, so a query may begin and end at any millisecond.
      const from = Math.floor(now - random() * 30 * HOUR_MS);
      const to = Math.floor(from + random() * (now - from));
      const query = { ...pick({ from, to }, { from: 0, to: now + 1 }), by: pick(...USAGE_BY) };
      const parts = new UsageParts();
      for (const line of lines) {
        const at = Date.parse(line.at);
        if (at >= query.from && at < query.to) parts.add(keyOf(line, query.by), line.user, line.model, countsOf(line));
      }
      await Promise.all(stores.map(async (each) => await each.usage.settled()));
      const answers = await Promise.all(stores.map(async (each) => sorted(await each.usage.read(query))));
      for (const answer of answers) expect(answer).toEqual(sorted(parts.all));
    };
    for (let round = 0; round < 30; round++) {
      for (let count = pick(0, 1, 3); count > 0; count--) append();
      if (random() < 0.2) await pick(...stores).usage.upkeep(YEAR_MS);
      if (random() < 0.1) await rename();
      await check();
    }
  });

  it("many lines are added up in the background even without a query, and close() waits for that", async () => {
    const store = open();
    const at = new Date().toISOString();
    const gate = new EventEmitter();
    before(SAVE_SUMS, async () => await once(gate, "open"));
    store.usage.append(Array.from({ length: 1_200 }, (_, index) => requestLines(String(index), { at })).flat());
    await store.usage.settled();
    const added = async () => Number(await redis.client.hget(keys.usageSums(hourOf(at)), "lines"));
    expect(await added()).toBe(0);
    const closed = store.close();
    expect(await Promise.race([closed, sleep(200, "waits")])).toBe("waits");
    gate.emit("open");
    await closed;
    expect(await added()).toBeGreaterThan(1_000);
  });

  it("after upkeep has deleted an hour's lines, a query for a part of the hour counts the whole hour", async () => {
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
    await store.usage.settled();
    await fill();
    expect(await requests(open(), second)).toBe(3);
    await redis.client.config("SET", "maxmemory", "0");
    expect(await requests(store)).toBe(3);
    expect(await isAddedUp(hour)).toBe(true);
    expect(await requests(store, second)).toBe(3);
    await store.usage.upkeep(YEAR_MS);
    expect(await redis.client.exists(keys.usageLines(hour))).toBe(0);
    expect(await requests(open())).toBe(3);
  });

  it("upkeep deletes the keys of hours that are too old, and a day's cells after its last hour is gone", async () => {
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

  it("a rename leaves no old name when another process adds up lines that it read before the rename", async () => {
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

  it("a query leaves out an hour that upkeep deletes together with its day's cells during the query", async () => {
    const store = open();
    const at = new Date(Date.now() - 100 * HOUR_MS).toISOString();
    store.usage.append([...requestLines("1", { at }), ...requestLines("2")]);
    expect(await requests(store)).toBe(2);
    const wasCalled = before(USAGE_CELLS, async () => await open().usage.upkeep(50 * HOUR_MS));
    expect(await requests(store)).toBe(1);
    expect(wasCalled()).toBe(true);
  });

  it("a rename leaves no old name in the hours of a host whose clock is wrong", async () => {
    const store = open();
    for (const hours of [-60, -30, -2, 24 * 40])
      store.usage.append(requestLines(String(hours), { at: past(hours), user: "canary" }));
    await store.usage.settled();
    await store.usage.rename({ users: new Map([["canary", "~1"]]), sessions: new Map() });
    expect(JSON.stringify(await everything())).not.toContain("canary");
  });

  it("renaming a user in the ledger keeps the usage that another process adds during the rename", async () => {
    const [one, other] = [open(), open()];
    one.usage.append(requestLines("1", { at: past(2), user: "canary" }));
    expect(await requests(one)).toBe(1);
    const wasCalled = before(RENAME_CELLS, async () => {
      other.usage.append(requestLines("2", { at: past(2), user: "bob" }));
      expect(await requests(other)).toBe(2);
    });
    await one.usage.rename({ users: new Map([["canary", "~1"]]), sessions: new Map() });
    expect(wasCalled()).toBe(true);
    expect((await other.usage.read({ ...all, by: "user" })).map(({ key }) => key).sort()).toEqual(["bob", "~1"]);
  });

  it("a rename does not overwrite a new line at the index of a line that upkeep deleted during the rename", async () => {
    const [one, other] = [open(), open()];
    const at = past(60);
    one.usage.append(requestLines("1", { at, user: "canary" }));
    expect(await requests(one)).toBe(1);
    const wasCalled = before(RENAME_LINES, async () => {
      await other.usage.upkeep(YEAR_MS);
      other.usage.append(requestLines("2", { at, user: "bob" }));
      await other.usage.settled();
    });
    await one.usage.rename({ users: new Map([["canary", "~1"]]), sessions: new Map() });
    expect(wasCalled()).toBe(true);
    expect((await one.usage.read({ ...all, by: "user" })).map(({ key }) => key).sort()).toEqual(["bob", "~1"]);
  });

  it("lines count once when two processes add them up at the same time", async () => {
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

  it("a query reads an hour again if upkeep deletes the hour's lines during the query", async () => {
    const store = open();
    const hour = hourOf(Date.now()) - 60;
    const at = (second: number) => new Date(hourStart(hour) + second * 1_000).toISOString();
    store.usage.append([...requestLines("1", { at: at(1) }), ...requestLines("2", { at: at(50) })]);
    expect(await requests(store, { from: hourStart(hour) + 30_000, to: hourStart(hour + 1) })).toBe(1);
    let isDropped = false;
    const spy = vi.spyOn(Connection.prototype, "run").mockImplementation(async function (this: Connection, ...args) {
      const answer = await run.apply(this, args);
      if (!isDropped && args[0] === USAGE_HOUR && args[1].includes(keys.usageSums(hour)) && args[2][1] === "true") {
        isDropped = true;
        await open().usage.upkeep(YEAR_MS);
      }
      return answer;
    });
    onTestFinished(() => spy.mockRestore());
    expect(await requests(store, { from: hourStart(hour) + 30_000, to: hourStart(hour + 1) })).toBe(2);
    expect(isDropped).toBe(true);
  });

  it("a query counts all lines while Redis is full, and tries to save the sums of only one hour", async () => {
    const store = open();
    const hours = [2, 3, 4].map((hour) => past(hour));
    store.usage.append(hours.flatMap((at) => requestLines(at, { at })));
    await store.usage.settled();
    const saves = counted(SAVE_SUMS);
    await fill();
    expect(await requests(store)).toBe(3);
    expect(saves()).toBe(1);
    await redis.client.config("SET", "maxmemory", "0");
    expect(await isAddedUp(hourOf(hours[0] ?? ""))).toBe(false);
    expect(await requests(open())).toBe(3);
    expect(await isAddedUp(hourOf(hours[0] ?? ""))).toBe(true);
  });

  it("upkeep deletes the lines of old hours even while Redis is full", async () => {
    const store = open();
    const at = past(60);
    store.usage.append(requestLines("1", { at }));
    expect(await requests(store)).toBe(1);
    await fill();
    await store.usage.upkeep(YEAR_MS);
    await redis.client.config("SET", "maxmemory", "0");
    expect(await redis.client.exists(keys.usageLines(hourOf(at)))).toBe(0);
    expect(await requests(store)).toBe(1);
  });

  it("upkeep keeps a line that arrives after it has added up an old hour and before it deletes the lines", async () => {
    const store = open();
    const at = past(60);
    store.usage.append(requestLines("1", { at }));
    const wasCalled = before(DROP_LINES, async () => {
      store.usage.append(requestLines("2", { at }));
      await store.usage.settled();
    });
    await store.usage.upkeep(YEAR_MS);
    expect(wasCalled()).toBe(true);
    expect(await requests(store)).toBe(2);
  });

  it("a query and a rename read many lines in parts of at most 2,000", async () => {
    const store = open();
    const at = past(2);
    await store.usage.settled();
    store.usage.append(requestLines("0", { at }));
    await store.usage.settled();
    const texts = requestLines("1", { at }).map((line) => JSON.stringify(line));
    await redis.client.rpush(keys.usageLines(hourOf(at)), ...Array.from({ length: 2_500 }, () => texts).flat());
    let most = 0;
    const spy = vi.spyOn(Connection.prototype, "run").mockImplementation(async function (this: Connection, ...args) {
      const answer = await run.apply(this, args);
      most = Math.max(most, ...answer.map((each) => (Array.isArray(each) ? each.length : 0)));
      return answer;
    });
    onTestFinished(() => spy.mockRestore());
    const names = { users: new Map([["ann", "canary"]]), sessions: new Map() };
    await store.usage.rename(names);
    expect(await requests(store, { from: Date.parse(at), to: Date.parse(at) + 1 })).toBe(2_501);
    expect(most).toBeGreaterThan(1_000);
    expect(most).toBeLessThanOrEqual(2_000);
    expect((await store.usage.read({ ...all, by: "user" })).map(({ key }) => key)).toEqual(["canary"]);
  });

  it("queries at the same time add up each hour once, and a query that fails leaves no command running", async () => {
    const store = open();
    const [bad, good] = [past(3), past(2)];
    store.usage.append([...requestLines("1", { at: bad }), ...requestLines("2", { at: good })]);
    await store.usage.settled();
    const saves = counted(SAVE_SUMS);
    expect(await Promise.all(Array.from({ length: 5 }, async () => await requests(store)))).toEqual([2, 2, 2, 2, 2]);
    expect(saves()).toBe(2);
    store.usage.append(requestLines("3", { at: good }));
    await store.usage.settled();
    await redis.client.hset(keys.usageSums(hourOf(bad)), "table", "of other cells");
    let [begun, ended] = [0, 0];
    vi.mocked(Connection.prototype.run).mockImplementation(async function (this: Connection, ...args) {
      begun++;
      const answer = await run.apply(this, args);
      ended++;
      return answer;
    });
    await expect(requests(store)).rejects.toMatchObject({ code: "FLEET_STATE_CORRUPT" });
    expect(begun).toBe(ended);
  });

  it("two processes that add up different hours of the same day at the same time lose no usage", async () => {
    const [one, other] = [open(), open()];
    const hour = hourOf(Date.now()) - (hourOf(Date.now()) % 24) - 14;
    const [ten, eleven] = [hour, hour + 1].map((each) => new Date(hourStart(each)).toISOString());
    one.usage.append(requestLines("1", { at: ten ?? "", user: "ann" }));
    await one.usage.settled();
    const wasCalled = before(SAVE_SUMS, async () => {
      other.usage.append(requestLines("2", { at: eleven ?? "", user: "bob" }));
      const from = hourStart(hour + 1);
      expect(await requests(other, { from, to: from + HOUR_MS })).toBe(1);
    });
    await requests(one);
    expect(wasCalled()).toBe(true);
    const parts = await open().usage.read({ ...all, by: "user" });
    expect(parts.map(({ key, requests }) => [key, requests]).sort()).toEqual([
      ["ann", 1],
      ["bob", 1],
    ]);
  });

  it("queries read the few lines of an hour that has not ended, and save no sums for that hour", async () => {
    const store = open();
    store.usage.append(requestLines("1", { at: past(-0.5) }));
    const saves = counted(SAVE_SUMS);
    for (let query = 0; query < 2; query++) expect(await requests(store)).toBe(1);
    expect(saves()).toBe(0);
  });

  const DAMAGED: [what: string, key: (at: string) => string, damage: (key: string) => Promise<unknown>][] = [
    [
      "sums that are cut off",
      (at) => keys.usageSums(hourOf(at)),
      async (key) => await redis.client.hset(key, "hour", '{"buckets":['),
    ],
    [
      "sums that are gone",
      (at) => keys.usageSums(hourOf(at)),
      async (key) => await redis.client.hdel(key, "hour"), //
    ],
    [
      "sums with a damaged number",
      (at) => keys.usageSums(hourOf(at)),
      async (key) => await redis.client.hset(key, "lines", "x"),
    ],
    [
      "a hash of sums that is gone",
      (at) => keys.usageSums(hourOf(at)),
      async (key) => await redis.client.del(key), //
    ],
    [
      "sums of minutes that are gone",
      (at) => keys.usageMinutes(hourOf(at)),
      async (key) => await redis.client.del(key),
    ],
    [
      "cells that are gone",
      (at) => keys.usageCells(dayOf(at)),
      async (key) => await redis.client.del(key), //
    ],
    ["a line that is not JSON", (at) => keys.usageLines(hourOf(at)), async (key) => await redis.client.rpush(key, "{")],
    [
      "lines that are gone",
      (at) => keys.usageLines(hourOf(at)),
      async (key) => await redis.client.del(key), //
    ],
    [
      "lines that are no list",
      (at) => keys.usageLines(hourOf(at)),
      async (key) => {
        await redis.client.del(key);
        await redis.client.set(key, "in the way");
      },
    ],
  ];
  it.each(DAMAGED)("a query fails with the key of %s, and other hours still count", async (_, keyOfHour, damage) => {
    const store = open();
    const [damaged, old, recent] = [past(100), past(60), past(2)];
    store.usage.append([damaged, old].flatMap((at) => requestLines(at, { at })));
    expect(await requests(store)).toBe(2);
    const key = keyOfHour(damaged);
    await damage(key);
    const left = async () =>
      await Promise.all([keys.usageLines(hourOf(damaged)), keys.usageMinutes(hourOf(damaged))].map(contentOf));
    const before = await left();
    const corrupt = { code: "FLEET_STATE_CORRUPT", message: expect.stringContaining(key) };
    await expect(requests(store)).rejects.toMatchObject(corrupt);
    const partly = { from: Date.parse(damaged), to: Date.parse(damaged) + 1 };
    // A query for a part of the hour does not always need the damaged data.
    const answer = await requests(store, partly).catch((error: unknown) => error);
    expect([1, expect.objectContaining(corrupt)]).toContainEqual(answer);
    store.usage.append(requestLines("3", { at: recent }));
    await store.usage.upkeep(YEAR_MS);
    expect(store.takeWarnings()).toEqual([expect.stringContaining(key)]);
    expect(await left()).toEqual(before);
    expect(await redis.client.exists(keys.usageLines(hourOf(old)))).toBe(0);
    expect(await isAddedUp(hourOf(recent))).toBe(true);
    expect(await requests(store, { from: Date.parse(old) - HOUR_MS, to: Date.now() })).toBe(2);
  });

  it("a query and a rename fail with the Redis key of a cell that is not JSON", async () => {
    const store = open();
    const at = past(2);
    store.usage.append(requestLines("1", { at }));
    expect(await requests(store)).toBe(1);
    const key = keys.usageCells(dayOf(at));
    await redis.client.hset(key, "cells", "damaged\n");
    const damaged = { code: "FLEET_STATE_CORRUPT", message: expect.stringContaining(key) };
    await expect(requests(store)).rejects.toMatchObject(damaged);
    const names = { users: new Map([["ann", "~1"]]), sessions: new Map() };
    await expect(store.usage.rename(names)).rejects.toMatchObject(damaged);
  });

  it.each(["usageHours", "usageLined", "usageRead"] as const)(
    "the ledger warns with the name of the key %s if that key has the wrong type",
    async (name) => {
      const store = open();
      store.usage.append(requestLines("1"));
      await store.usage.settled();
      await redis.client.del(keys[name]);
      await redis.client.set(keys[name], "in the way");
      store.usage.append(requestLines("2"));
      await store.usage.settled();
      expect(store.takeWarnings()).toEqual([expect.stringContaining(`the key "${keys[name]}" is not a `)]);
      await redis.client.del(keys[name]);
    },
  );
});

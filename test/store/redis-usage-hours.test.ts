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
import { openStore } from "../../src/store/store.js";
import type { Store } from "../../src/store/ports.js";
import { Connection } from "../../src/store/redis/connection.js";
import { keysOf } from "../../src/store/redis/failures.js";
import { SAVE_SUMS } from "../../src/store/redis/scripts.js";
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
});

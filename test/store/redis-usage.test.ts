import fs, { appendFileSync, existsSync, rmSync, statSync, writeFileSync } from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { dayOf, hourOf } from "../../src/base/usage.js";
import { readRedisUrl } from "../../src/base/values/network.js";
import { openStore } from "../../src/store/file/file-store.js";
import type { Store } from "../../src/store/ports.js";
import { Connection } from "../../src/store/redis/connection.js";
import { keysOf } from "../../src/store/redis/failures.js";
import { COUNT_USAGE } from "../../src/store/redis/scripts.js";
import { requestLines } from "../contract/usage.contract.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

describe.skipIf(redisProblem() !== undefined)("the ledger of several hosts in Redis", () => {
  let redis: RedisServer;
  let root: string;
  let url: string;
  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(async () => await redis.end());
  beforeEach(async () => {
    root = await temporaryRoot();
    url = redis.url();
  });

  const open = (): Store => {
    const store = openStore(url, root);
    onTestFinished(async () => await store.close());
    return store;
  };
  const requests = async (store: Store) =>
    (await store.usage.read({ from: 0, to: Date.now() + 1_000, by: "user" })).map((part) => part.requests);

  /** Calls `call` before each part of a segment is counted. */
  const onCount = (call: () => void | Promise<void>) => {
    const { run } = Connection.prototype;
    const spy = vi.spyOn(Connection.prototype, "run").mockImplementation(async function (this: Connection, ...args) {
      if (args[0] === COUNT_USAGE) await call();
      return await run.apply(this, args);
    });
    onTestFinished(() => spy.mockRestore());
  };

  it("settled() ends after at most two runs, however often others append lines and call it", async () => {
    const { usage } = open();
    let counts = 0;
    onCount(() => {
      if (++counts > 20) return;
      usage.append(requestLines(`more ${counts}`));
      void usage.settled();
    });
    usage.append(requestLines("first"));
    await usage.settled();
    expect(counts).toBeLessThanOrEqual(3);
  });

  it("when a new ledger folder replaces a deleted one, its lines count, even if both have the same size", async () => {
    const { usage } = open();
    usage.append(requestLines("1"));
    await usage.settled();
    rmSync(join(root, "usage"), { recursive: true });
    usage.append(requestLines("2"));
    await usage.settled();
    const [part] = await usage.read({ from: 0, to: Date.now() + 1_000, by: "user" });
    expect(part?.requests).toBe(2);
  });

  it("each ledger line counts once after earlier attempts to count it failed in Redis", async () => {
    const store = open();
    const { fleet = "" } = readRedisUrl(url) ?? {};
    const [line] = requestLines("1");
    const key = keysOf(fleet, null).usageTokens(dayOf(line?.at ?? ""));
    await redis.client.set(key, "in the way");
    store.usage.append(requestLines("1"));
    for (let tries = 0; tries < 3; tries++) await store.usage.settled();
    await redis.client.del(key);
    expect(await requests(store)).toEqual([1]);
    expect(await store.usage.tokensSince("ann", Date.parse(line?.at ?? ""))).toBe(15);
  });

  it("the ledger leaves out amounts that Redis cannot add, names them in warnings, and counts all others", async () => {
    const store = open();
    store.usage.append(requestLines("1"));
    const path = join(root, "usage", "00000001.jsonl");
    const [begun, ended] = requestLines("2").map((line) => JSON.stringify(line));
    const damaged = [
      ended?.replace('"inputTokens":10', '"inputTokens":1e999'),
      ended?.replace('"credits":null', '"credits":1e300'),
      begun?.replace(/"at":"[^"]*"/, '"at":"never"'),
    ];
    appendFileSync(path, `\n${[begun, ...damaged].join("\n")}\n`);
    store.usage.append(requestLines("3"));
    const [line] = requestLines("1");
    expect(await store.usage.tokensSince("ann", Date.parse(line?.at ?? ""))).toBe(15 + 5 + 15 + 15);
    for (const from of [0, Date.parse(line?.at ?? "") - 60_000]) {
      const parts = await store.usage.read({ from, to: Date.now() + 1_000, by: "user" });
      expect(parts).toMatchObject([{ requests: 3, inputTokens: 30, outputTokens: 20, credits: null }]);
    }
    expect(store.takeWarnings()).toEqual([
      'The ledger leaves out inputTokens of the request "2", which is "Infinity".',
      'The ledger leaves out credits of the request "2", which is "1e+300".',
      'The ledger leaves out the line with the time of the request "2", which is "never".',
    ]);
  });

  it("each ledger line counts once even if a sum in Redis is not a number, and a warning names the sum", async () => {
    const store = open();
    const [line] = requestLines("1");
    const { fleet = "" } = readRedisUrl(url) ?? {};
    const key = keysOf(fleet, null).usageTokens(dayOf(line?.at ?? ""));
    await redis.client.hset(key, "ann", "in the way");
    store.usage.append(requestLines("1"));
    for (let tries = 0; tries < 3; tries++) await store.usage.settled();
    expect(await requests(store)).toEqual([1]);
    expect(store.takeWarnings()).toEqual([`The ledger leaves out amounts, because "${key}" in Redis is damaged.`]);
  });

  it("lines for an hour with a damaged key wait until the key is deleted, and later segments still count", async () => {
    const store = open();
    const { fleet = "" } = readRedisUrl(url) ?? {};
    const at = new Date(Date.now() - 3 * 3_600_000).toISOString();
    const key = keysOf(fleet, null).usageSums(hourOf(at));
    store.usage.append(requestLines("0", { at }));
    await store.usage.settled();
    await redis.client.set(key, "in the way");
    store.usage.append(requestLines("1", { at }));
    const texts = requestLines("2", { user: "bob" }).map((line) => `${JSON.stringify(line)}\n`);
    writeFileSync(join(root, "usage", "00000002.jsonl"), `\n${texts.join("")}`);
    await store.usage.upkeep(90 * 24 * 3_600_000);
    const problem = `the key "${key}" is not a hash`;
    expect(store.takeWarnings()).toEqual([
      expect.stringMatching(/^Lines of the ledger do not count, and wait in /),
      expect.stringMatching(/^Lines of the ledger are not added up\. /),
    ]);
    const recent = { from: Date.now() - 3_600_000, to: Date.now() + 1_000, by: "user" } as const;
    expect(await store.usage.read(recent)).toMatchObject([{ key: "bob", requests: 1 }]);
    const damaged = { code: "FLEET_STATE_CORRUPT", message: expect.stringContaining(problem) };
    await expect(store.usage.read({ ...recent, from: 0 })).rejects.toMatchObject(damaged);
    await expect(store.usage.rename({ users: new Map([["ann", "~1"]]), sessions: new Map() })).rejects.toMatchObject(
      damaged,
    );
    await redis.client.del(key);
    expect(await requests(store)).toEqual([2, 1]);
  });

  it("a sealed segment is deleted once it is counted, even if a full disk has cut off its last line", async () => {
    const { usage } = open();
    usage.append(requestLines("1"));
    const path = join(root, "usage", "00000001.jsonl");
    appendFileSync(path, '\n{"id":"torn","at":"2026-11');
    await usage.rename({ users: new Map(), sessions: new Map() });
    expect(existsSync(path)).toBe(false);
  });

  it("the id of a ledger folder is synced to disk before Redis counts a line under that id", async () => {
    const synced: number[] = [];
    const { fsyncSync } = fs;
    vi.spyOn(fs, "fsyncSync").mockImplementation((fd) => {
      synced.push(fs.fstatSync(fd).ino);
      fsyncSync(fd);
    });
    syncBuiltinESMExports();
    onTestFinished(() => {
      vi.restoreAllMocks();
      syncBuiltinESMExports();
    });
    const { usage } = open();
    let before: readonly number[] = [];
    onCount(() => {
      before = [...synced];
    });
    usage.append(requestLines("1"));
    await usage.settled();
    const folder = join(root, "usage");
    expect(before).toEqual(expect.arrayContaining([folder, join(folder, "id")].map((path) => statSync(path).ino)));
  });

  it("a segment's lines count once, even if a process that has read them sends them after its deletion", async () => {
    const other = open();
    other.usage.append(requestLines("1"));
    let release: (() => void) | undefined;
    let isFirst = true;
    const held = new Promise<void>((resolve) => {
      onCount(async () => {
        if (!isFirst) return;
        isFirst = false;
        resolve();
        await new Promise<void>((go) => {
          release = go;
        });
      });
    });
    const late = other.usage.settled();
    await held;
    // A fleet that moved from the file store also has files of sums, which contain the names of users.
    const sums = join(root, "usage", "00000001.sums");
    writeFileSync(sums, "canary");
    // The rename seals the segment, counts it and deletes it.
    const one = open();
    await one.usage.rename({ users: new Map(), sessions: new Map() });
    release?.();
    await late;
    expect(await requests(one)).toEqual([1]);
    expect(existsSync(sums)).toBe(false);
  });
});

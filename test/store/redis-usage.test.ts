import fs, { appendFileSync, existsSync, statSync } from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { openStore } from "../../src/store/store.js";
import type { Store } from "../../src/store/ports.js";
import { Connection } from "../../src/store/redis/connection.js";
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

  /** Calls `call` before each part of a segment is counted. */
  const onCount = (call: () => void | Promise<void>) => {
    const { run } = Connection.prototype;
    const spy = vi.spyOn(Connection.prototype, "run").mockImplementation(async function (this: Connection, ...args) {
      if (args[0] === COUNT_USAGE) await call();
      return await run.apply(this, args);
    });
    onTestFinished(() => spy.mockRestore());
  };

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
});

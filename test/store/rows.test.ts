import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe } from "vitest";
import { readRedisUrl } from "../../src/base/values/network.js";
import { openStore } from "../../src/store/store.js";
import type { Store } from "../../src/store/ports.js";
import { RowStore } from "../../src/store/store.js";
import { describeStore } from "../contract/store.contract.js";
import { RedisServer } from "../fixtures/store/redis-server.js";

function open(root: string, url?: string): Store {
  const target = url === undefined ? null : readRedisUrl(url);
  if (url === undefined || target === null) return new RowStore(root, null);
  // biome-ignore lint/suspicious/noExplicitAny: for a while
  const { documents } = openStore(url, root) as any;
  return new RowStore(root, { target, documents, connection: documents.connection, host: null, instance: undefined });
}

describeStore("rows in SQLite", async () => {
  const parent = await mkdtemp(join(tmpdir(), "copilotfleet-store-"));
  const root = join(parent, "state");
  return {
    store: open(root),
    reopen: async () => open(root),
    cleanup: () => rm(parent, { recursive: true, force: true }),
  };
});

describe("rows in Redis", () => {
  let redis: RedisServer;
  beforeAll(async () => {
    redis = await RedisServer.start();
  });
  afterAll(() => redis.end());
  describeStore("rows in Redis", async () => {
    const parent = await mkdtemp(join(tmpdir(), "copilotfleet-store-"));
    const root = join(parent, "state");
    const url = redis.url();
    return {
      store: open(root, url),
      reopen: async () => open(root, url),
      cleanup: () => rm(parent, { recursive: true, force: true }),
    };
  });
});

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe } from "vitest";
import { openStore } from "../../src/store/open.js";
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

  describeStore("redis", async () => {
    const root = await mkdtemp(join(tmpdir(), "copilotfleet-store-"));
    const url = redis.url();
    return {
      store: openStore(url, root),
      reopen: async () => openStore(url, root),
      cleanup: () => rm(root, { recursive: true, force: true }),
    };
  });
});

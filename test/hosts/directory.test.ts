import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { SessionRecord } from "../../src/base/session.js";
import { HostDirectory } from "../../src/servers/directory.js";
import { openStore } from "../../src/store/file/file-store.js";
import { RedisServer, redisProblem } from "../fixtures/store/redis-server.js";
import { withStoreKey } from "../fixtures/store/store-root.js";

const problem = redisProblem();
if (problem !== undefined) console.warn(`the directory of hosts is not tested by itself: ${problem}`);

describe.skipIf(problem !== undefined)("the directory of hosts", () => {
  let redis: RedisServer;
  let folder: string;
  beforeAll(async () => {
    redis = await RedisServer.start();
    folder = await mkdtemp(join(tmpdir(), "copilotfleet-directory-"));
  });
  afterAll(async () => {
    await redis.end();
    await rm(folder, { recursive: true });
  });

  it("HostDirectory reads a host's entry again when the cached entry is older than the host's front door", async () => {
    const url = redis.url();
    const [here, there] = ["h1", "h2"].map((name) => openStore(url, withStoreKey(join(folder, name)), name));
    if (here === undefined || there === undefined) throw new Error("no stores");
    try {
      const entry = { state: "serving", startedAt: new Date().toISOString(), storage: null } as const;
      await there.hosts?.beat("instance", { ...entry, door: null }, 60_000);
      const directory = new HostDirectory({ store: here, config: { storage: { shared: null } } });
      expect(await directory.list()).toMatchObject([{ name: "h2", door: null }]);
      await there.hosts?.beat("instance", { ...entry, door: "10.0.0.2:4300" }, 60_000);
      const record = { id: "notes", owner: "ann", host: "h2" } as SessionRecord;
      expect(await directory.whereIs(record)).toMatchObject({ here: false, host: { door: "10.0.0.2:4300" } });
    } finally {
      await Promise.all([here.close(), there.close()]);
    }
  });
});

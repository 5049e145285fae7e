import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe } from "vitest";
import { system } from "../../src/base/system/system.js";
import { readRedisUrl } from "../../src/base/values/network.js";
import { openFileStore, openStore } from "../../src/store/file/file-store.js";
import { ensureStateFolder, stateFolderCheck } from "../../src/store/file/state-folder.js";
import type { Store } from "../../src/store/ports.js";
import { Leases } from "../../src/store/rows/leases.js";
import { SqliteLedger } from "../../src/store/rows/ledger.js";
import { Limits } from "../../src/store/rows/limits.js";
import { KeyedTurns, Placements, Purges, Tokens } from "../../src/store/rows/records.js";
import { RedisRows } from "../../src/store/rows/redis.js";
import { RedisLedger } from "../../src/store/rows/redis-ledger.js";
import { RegistryFile } from "../../src/store/rows/registry.js";
import { FleetRows } from "../../src/store/rows/rows.js";
import { Sessions } from "../../src/store/rows/sessions.js";
import { SqliteRows } from "../../src/store/rows/sqlite.js";
import { Usage } from "../../src/store/rows/usage.js";
import { describeStore } from "../contract/store.contract.js";
import { RedisServer } from "../fixtures/store/redis-server.js";

function open(root: string, url?: string): Store {
  const folder = { checkFolder: stateFolderCheck(root), ensureFolder: () => ensureStateFolder(root) };
  const clock = { now: () => Math.round(system().clock.nowMs()), clockId: system().clock.bootId() };
  const state = new SqliteRows(join(root, "state.db"), { ...folder, durable: true, now: Date.now, clockId: "" });
  const host = new SqliteRows(join(root, "host.db"), { ...folder, ...clock, durable: false });
  const fleet = url === undefined ? "" : (readRedisUrl(url)?.fleet ?? "");
  const old = url === undefined ? openFileStore(root) : openStore(url, root);
  // biome-ignore lint/suspicious/noExplicitAny: for a while
  const redis = url === undefined ? null : new RedisRows((old as any).documents, fleet);
  const rows = new FleetRows({ fleet: redis ?? state, use: redis ?? host, host });
  // biome-ignore lint/suspicious/noExplicitAny: for a while
  const shared = url === undefined ? null : new RedisLedger((old as any).documents.connection, fleet);
  const usage = new Usage(new SqliteLedger(join(root, "ledger.db"), folder), shared);
  const leases = new Leases(rows);
  const sessions = new Sessions(rows, leases);
  const limits = new Limits(rows, sessions);
  return {
    kind: "file",
    hosts: null,
    registry: url === undefined ? new RegistryFile(root, state, folder.checkFolder) : old.registry,
    leases,
    sessions,
    limits,
    tokens: new Tokens(rows, { isShared: redis !== null }),
    placements: new Placements(rows),
    keyedTurns: new KeyedTurns(rows),
    purges: new Purges(rows),
    usage,
    pseudonymKey: async (offered) => offered,
    now: async () => redis?.now() ?? Date.now(),
    probe: async () => ({ durationMs: 1, clockAheadMs: 0 }),
    sweep: async () => undefined,
    forgetOlder: async () => undefined,
    takeWarnings: () => [],
    close: async () => {
      limits.stop();
      await rows.close();
      await usage.close();
      await old.close();
    },
  };
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

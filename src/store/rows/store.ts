import { join } from "node:path";
import { system } from "../../base/system/system.js";
import type { RedisUrl } from "../../base/values/network.js";
import { ensureStateFolder, stateFolderCheck } from "../file/state-folder.js";
import type { Hosts, RegistryStore, Store, StoreProbe } from "../ports.js";
import type { Connection } from "../redis/connection.js";
import type { Documents } from "../redis/documents.js";
import { HostTable, RegistryRow } from "./hosts.js";
import { Leases } from "./leases.js";
import { SqliteLedger } from "./ledger.js";
import { Limits } from "./limits.js";
import { KeyedTurns, Placements, PSEUDONYM_KEYS, Purges, Tokens } from "./records.js";
import { RedisRows } from "./redis.js";
import { RedisLedger } from "./redis-ledger.js";
import { RegistryFile } from "./registry.js";
import { FleetRows, type Rows } from "./rows.js";
import { Sessions } from "./sessions.js";
import { SqliteRows } from "./sqlite.js";
import { Table } from "./table.js";
import { Usage } from "./usage.js";

const MOST_WARNINGS = 1_000;

interface SharedOptions {
  target: RedisUrl;
  documents: Documents;
  connection: Connection;
  /** As for `openRedisStore`. */
  host: string | null;
  instance: (() => string | null) | undefined;
}

/** The state of a fleet: in SQLite files in the state folder and, if hosts share it, in Redis. */
export class RowStore implements Store {
  readonly kind: "file" | "redis";
  readonly hosts: Hosts | null;
  readonly registry: RegistryStore;
  readonly sessions: Sessions;
  readonly leases: Leases;
  readonly tokens: Tokens;
  readonly placements: Placements;
  readonly keyedTurns: KeyedTurns;
  readonly purges: Purges;
  readonly usage: Usage;
  readonly limits: Limits;
  readonly #rows: FleetRows;
  readonly #shared: Rows;
  readonly #local: readonly SqliteRows[];
  readonly #warnings = new Set<string>();
  /** All warnings so far. A new connection repeats warnings, and {@link takeWarnings} returns each only once. */
  readonly #warned = new Set<string>();

  /**
   * @param root the state folder
   * @param shared null for a fleet on one host
   */
  constructor(root: string, shared: SharedOptions | null) {
    const folder = { checkFolder: stateFolderCheck(root), ensureFolder: () => ensureStateFolder(root) };
    // Nobody can set the clock that counts from the start of the machine.
    const clock = { now: () => Math.round(system().clock.nowMs()), clockId: system().clock.bootId() };
    const state = new SqliteRows(join(root, "state.db"), { ...folder, durable: true, now: Date.now, clockId: "" });
    const host = new SqliteRows(join(root, "host.db"), { ...folder, ...clock, durable: false });
    const ledger = new SqliteLedger(join(root, "ledger.db"), folder);
    this.#local = [state, host];
    if (shared === null) {
      this.kind = "file";
      this.#shared = state;
      this.#rows = new FleetRows({ fleet: state, use: host, host });
      this.hosts = null;
      this.registry = new RegistryFile(root, state, folder.checkFolder);
      this.usage = new Usage(ledger, null);
    } else {
      const { target, documents, connection, host: own, instance } = shared;
      const redis = new RedisRows(documents, target.fleet);
      this.kind = "redis";
      this.#shared = redis;
      this.#rows = new FleetRows({ fleet: redis, use: redis, host });
      const hosts = own === null ? null : new HostTable(own, instance, this.#rows, (message) => this.warn(message));
      this.hosts = hosts;
      this.registry = new RegistryRow(this.#rows, hosts);
      this.usage = new Usage(ledger, new RedisLedger(connection, target.fleet));
    }
    this.leases = new Leases(this.#rows);
    this.sessions = new Sessions(this.#rows, this.leases);
    this.tokens = new Tokens(this.#rows, { isShared: shared !== null });
    this.placements = new Placements(this.#rows);
    this.keyedTurns = new KeyedTurns(this.#rows);
    this.purges = new Purges(this.#rows);
    this.limits = new Limits(this.#rows, this.sessions);
  }

  async pseudonymKey(offered: string): Promise<string> {
    return await new Table(this.#rows, PSEUDONYM_KEYS).update("", (draft) => {
      draft.record ??= { key: offered };
      return draft.record.key;
    });
  }

  async now(): Promise<number> {
    return await this.#shared.now();
  }

  async probe(): Promise<StoreProbe> {
    await this.now(); // opens it
    const begun = performance.now();
    const theirs = await this.now();
    const durationMs = performance.now() - begun;
    // The database read its clock about half way between the request and the answer.
    return { durationMs, clockAheadMs: theirs - (Date.now() - durationMs / 2) };
  }

  async sweep(): Promise<void> {
    await this.tokens.forgetEnds(await this.now());
  }

  async forgetOlder(): Promise<void> {
    for (const rows of this.#local) await rows.eraseDeleted();
  }

  /** Adds a warning that {@link takeWarnings} returns. */
  warn(message: string): void {
    // Somebody with write access to Redis could cause any number of different warnings.
    if (this.#warned.has(message) || this.#warned.size >= MOST_WARNINGS) return;
    this.#warned.add(message);
    this.#warnings.add(message);
  }

  takeWarnings(): string[] {
    const warnings = [...this.#warnings];
    this.#warnings.clear();
    return warnings;
  }

  async close(): Promise<void> {
    this.limits.stop();
    await this.usage.close();
    await this.#rows.close();
    for (const rows of this.#local) await rows.close();
  }
}

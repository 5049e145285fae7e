import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { FleetError, quote, systemCode } from "../base/errors.js";
import type { NamedSource } from "../base/server.js";
import { system } from "../base/system/system.js";
import { type RedisUrl, readRedisUrl, showRedisUrl } from "../base/values/network.js";
import { shellQuote } from "../base/values/text.js";
import type { Environment } from "../config/load/paths.js";
import { olderError } from "./failures.js";
import { closeQuietly, scratchName, sweepFolder, writeNewFile } from "./file/durable.js";
import { readIfThere, writing } from "./file/failures.js";
import { restoreReserve } from "./file/reserve.js";
import { ensureStateFolder, stateFolderCheck } from "./file/state-folder.js";
import { HOSTS, HostTable, REGISTRIES, RegistryRow } from "./hosts.js";
import { LEASES, LeaseTable } from "./leases.js";
import { LIMITS, LimitTable, SLOTS } from "./limits.js";
import { PURGES, PurgeTable } from "./purges.js";
import { Connection } from "./redis/connection.js";
import { Epoch } from "./redis/epoch.js";
import { RedisLedger } from "./redis/ledger.js";
import { keyPrefix, RedisRows } from "./redis/rows.js";
import { Signatures, Signer } from "./redis/signatures.js";
import { RegistryFile, type RegistryStore } from "./registry.js";
import { type AnyKind, FleetRows } from "./rows.js";
import { SESSIONS, SessionTable } from "./sessions.js";
import { eventsFile } from "./sqlite/events.js";
import { SqliteLedger } from "./sqlite/ledger.js";
import { DAMAGED, type SqliteFile, SqliteRows } from "./sqlite/rows.js";
import { Table } from "./table.js";
import {
  KEYED_TURNS,
  KeyedTurnTable,
  PLACEMENTS,
  PlacementTable,
  PSEUDONYM_KEYS,
  TOKEN_USES,
  TOKENS,
  TokenTable,
} from "./tokens.js";
import { UsageTable } from "./usage.js";

const MOST_WARNINGS = 1_000;
const NO_SECRETS: StoreSecrets = { key: null, password: null, env: {} };

/** The kinds of records that hosts share. */
const SHARED: readonly AnyKind[] = [
  REGISTRIES,
  HOSTS,
  SESSIONS,
  LEASES,
  TOKENS,
  TOKEN_USES,
  PLACEMENTS,
  KEYED_TURNS,
  LIMITS,
  SLOTS,
  PURGES,
  PSEUDONYM_KEYS,
];

/** `storeOptions`, and the variables to which it refers. */
export interface StoreSecrets {
  /** The key that signs the records. Null: the file `store-key` in the state folder. */
  key: NamedSource | null;
  password: NamedSource | null;
  env: Environment;
}

export interface StoreOptions {
  /** The name of this host among the hosts that share the fleet. Without it, the fleet serves a single host. */
  host?: string | undefined;
  /** Reads the random id of this host's state folder. With it, the store fails if another host has the same name. */
  instance?: (() => string | null) | undefined;
  secrets?: StoreSecrets | undefined;
  /** How long an update competes with other writers before it fails with `FLEET_STATE_BUSY`, in milliseconds. */
  deadlineMs?: number | undefined;
  /** How long one operation waits for Redis before it fails with `FLEET_STORE_UNAVAILABLE`, in milliseconds. */
  operationMs?: number | undefined;
  /** The clock of leases and other records that only survive the death of a process, in milliseconds. Tests set it. */
  clock?: { now: () => number; clockId: string } | undefined;
}

/**
 * Opens the state of a fleet. The first use checks the state folder, and the first write creates it.
 *
 * @param url "file", or the URL of a Redis database. Then, besides the errors in the contract, every method may throw
 * FleetError `FLEET_STORE_UNAVAILABLE` (within 5 seconds), `FLEET_STORE_UNUSABLE`, and `FLEET_STATE_LOST` when the
 * database has lost its data.
 * @param root the state folder
 */
export function openStore(url: string, root: string, options: StoreOptions = {}): Store {
  if (url === "file") return new Store(root, null, options);
  const target = readRedisUrl(url);
  if (target !== null) return new Store(root, target, options);
  // The URL may contain a password, so show only its scheme.
  const named = /^[a-z][a-z0-9+.-]*:/i.exec(url)?.[0] ?? url;
  throw new FleetError("FLEET_CONFIG_INVALID", `The store ${quote(named)} is not supported. Use "file" or Redis.`, {
    suggestions: ['Set "store" to "file" or to a redis:// URL in the configuration.'],
  });
}

/** The kinds of records in Redis, as people and scripts see them. */
export type SignedKind =
  | "servers"
  | "hosts"
  | "sessions"
  | "leases"
  | "tokens"
  | "token-uses"
  | "placements"
  | "keyed-turns"
  | "limits"
  | "slots"
  | "purges"
  | "pseudonym-key";

/** A record whose signature is missing, wrong or outdated. */
export interface SignatureFinding {
  kind: SignedKind;
  /** The id of the record among those of its kind. */
  name: string;
  /** `outdated`: the signature is valid, but was made with a key other than the first. */
  verdict: "outdated" | "unsigned" | "unknown-key" | "wrong";
}

/** Finds records in Redis that need a signature, and signs them. */
export interface RecordSignatures {
  /** The id of the key with which this host signs; null if it has no key. */
  readonly keyId: string | null;
  /** Lets {@link sign} make a key even though the database has records. */
  allowNewKey(): void;
  missingKey(): FleetError;
  find(): Promise<SignatureFinding[]>;
  /**
   * Signs records that {@link find} has found. Leaves out records that somebody has changed since then, and those of a
   * newer schema. Resolves with the findings whose records were signed.
   */
  sign(findings: readonly SignatureFinding[]): Promise<SignatureFinding[]>;
}

export interface RepairedFile {
  file: string;
  /** The new path of the damaged file. */
  keptAs: string;
  /** When the copy was made that is now in its place. Null: there was none. */
  copiedAt: Date | null;
}

export interface StoreProbe {
  /**
   * How long the operation took, in milliseconds. In the file store, it is a write that is synced to disk. Null if
   * nothing has been stored so far.
   */
  durationMs: number | null;
  /** How far the store's clock is ahead of this machine's, in milliseconds; 0 if they are the same clock. */
  clockAheadMs: number;
}

/**
 * The state of a fleet: in SQLite files in the state folder and, if hosts share it, in Redis. It passes
 * `test/contract/` with both.
 *
 * - A write whose promise has resolved is stored exactly once, no matter which process dies.
 * - A write whose promise has not resolved is stored completely or not at all.
 * - Two writers never undo each other's changes. An update runs its change on the newest state, and runs it again if
 *   another
 *   writer commits first.
 *
 * Each list has the records in any order. It may omit a record that is created or deleted during the call.
 */
export class Store {
  readonly kind: "file" | "redis";
  /**
   * The hosts that share this store, or null if it serves a single host. Each host has its own registry. All hosts
   * share sessions, leases, tokens and placements.
   */
  readonly hosts: HostTable | null;
  readonly registry: RegistryStore;
  readonly sessions: SessionTable;
  readonly leases: LeaseTable;
  readonly tokens: TokenTable;
  readonly placements: PlacementTable;
  readonly keyedTurns: KeyedTurnTable;
  readonly purges: PurgeTable;
  readonly usage: UsageTable;
  readonly limits: LimitTable;
  /** Null for a fleet without Redis. */
  readonly signatures: RecordSignatures | null;
  readonly rows: FleetRows;
  readonly #root: string;
  readonly #shared: SqliteRows | RedisRows;
  readonly #files: Record<"state.db" | "host.db" | "ledger.db" | "events.db", SqliteFile>;
  readonly #local: readonly SqliteRows[];
  readonly #checkFolder: () => void;
  readonly #warnings = new Set<string>();
  /** All warnings so far. A new connection repeats warnings, and {@link takeWarnings} returns each only once. */
  readonly #warned = new Set<string>();

  constructor(root: string, target: RedisUrl | null, options: StoreOptions) {
    const { host: own = null, instance, secrets = NO_SECRETS, deadlineMs, operationMs } = options;
    this.#root = root;
    this.#checkFolder = stateFolderCheck(root);
    const folder = { checkFolder: this.#checkFolder, ensureFolder: () => ensureStateFolder(root) };
    // Nobody can set the clock that counts from the start of the machine.
    const clock = options.clock ?? { now: () => Math.round(system().clock.nowMs()), clockId: system().clock.bootId() };
    const state = new SqliteRows(join(root, "state.db"), {
      ...folder,
      durable: true,
      now: () => Date.now(),
      clockId: "",
    });
    const host = new SqliteRows(join(root, "host.db"), { ...folder, ...clock, durable: false });
    const ledger = new SqliteLedger(join(root, "ledger.db"), folder);
    const warn = (message: string) => this.#warn(message);
    this.#local = [state, host];
    this.#files = {
      "state.db": state.file,
      "host.db": host.file,
      "ledger.db": ledger.file,
      "events.db": eventsFile(root),
    };
    if (target === null) {
      refuseOlder(root);
      this.kind = "file";
      this.#shared = state;
      this.rows = new FleetRows({ fleet: state, use: host, host: state }, deadlineMs);
      this.hosts = null;
      this.registry = new RegistryFile(root, state, this.#checkFolder);
      this.usage = new UsageTable(ledger, null);
      this.signatures = null;
    } else {
      const where = showRedisUrl(target);
      const prefix = keyPrefix(target.fleet);
      const epoch = new Epoch(where, root, warn);
      const signer = new Signer(root, secrets.key, where);
      const connection = new Connection({
        target,
        epochKey: `${prefix}epoch`,
        epoch,
        signer,
        secrets,
        warn,
        operationMs,
      });
      const redis = new RedisRows(connection, signer, prefix, warn);
      this.kind = "redis";
      this.#shared = redis;
      this.rows = new FleetRows({ fleet: redis, use: redis, host: state }, deadlineMs);
      const hosts = own === null ? null : new HostTable(own, instance, this.rows, warn);
      this.hosts = hosts;
      this.registry = new RegistryRow(this.rows, hosts);
      this.usage = new UsageTable(ledger, new RedisLedger(connection, prefix));
      this.signatures = new Signatures(redis, signer, SHARED);
    }
    this.leases = new LeaseTable(this.rows);
    this.sessions = new SessionTable(this.rows, this.leases);
    this.tokens = new TokenTable(this.rows, { isShared: target !== null, warn });
    this.placements = new PlacementTable(this.rows);
    this.keyedTurns = new KeyedTurnTable(this.rows);
    this.purges = new PurgeTable(this.rows);
    this.limits = new LimitTable(this.rows, this.sessions);
  }

  /** The key for the pseudonyms on all hosts: 64 hexadecimal digits. If there is none, `offered` becomes the key. */
  async pseudonymKey(offered: string): Promise<string> {
    // With only one host, there is no other key to agree on.
    if (this.kind === "file") return offered;
    return await new Table(this.rows, PSEUDONYM_KEYS).update("", (draft) => {
      draft.record ??= { key: offered };
      return draft.record.key;
    });
  }

  /** The clock for the expiry of tokens, in milliseconds since the epoch. All processes that use the store share it. */
  async now(): Promise<number> {
    return await this.#shared.now();
  }

  /** Measures one small operation on the store, for `doctor`. Leaves nothing behind. @throws like every other method */
  async probe(): Promise<StoreProbe> {
    if (this.kind === "file") return { durationMs: await this.#syncMs(), clockAheadMs: 0 };
    await this.now(); // connects
    const begun = performance.now();
    const theirs = await this.now();
    const durationMs = performance.now() - begun;
    // Redis read its clock about half way between the request and the answer.
    return { durationMs, clockAheadMs: theirs - (Date.now() - durationMs / 2) };
  }

  /** Removes what killed writers and ended records have left. */
  async sweep(): Promise<void> {
    this.#checkFolder();
    await sweepFolder(this.#root);
    await this.tokens.forgetEnds(await this.now());
    if (this.#shared instanceof RedisRows) for (const kind of [LEASES, SLOTS]) await this.#shared.forgetEnded(kind);
  }

  /** Overwrites deleted records everywhere on this host, and deletes damaged files that contain one of the texts. */
  async forgetOlder(texts: readonly string[]): Promise<void> {
    this.#checkFolder();
    for (const file of Object.values(this.#files)) await file.eraseDeleted();
    const names = readIfThere(this.#root, () => readdirSync(this.#root)) ?? [];
    for (const name of names.filter((each) => each.startsWith(DAMAGED))) {
      const path = join(this.#root, name);
      const bytes = readIfThere(path, () => readFileSync(path));
      if (bytes !== undefined && texts.some((text) => bytes.includes(text))) rmSync(path, { force: true });
    }
  }

  /** Replaces this host's copy of the records, from which {@link repair} restores them. */
  async copy(): Promise<void> {
    await this.#files["state.db"].copy();
  }

  /** Looks for damage in the files of this host's state folder. */
  async damage(): Promise<{ file: string; detail: string }[]> {
    const found: { file: string; detail: string }[] = [];
    for (const [file, database] of Object.entries(this.#files)) {
      const detail = await database.damage();
      if (detail !== null) found.push({ file, detail });
    }
    return found;
  }

  /** Replaces damaged files by their last copies. A file without a copy begins empty. */
  async repair(): Promise<RepairedFile[]> {
    const repaired: RepairedFile[] = [];
    for (const [file, database] of Object.entries(this.#files))
      if ((await database.damage()) !== null) repaired.push({ file, ...database.restore() });
    return repaired;
  }

  /** Returns the problems that reads have found since the last call. They did not make the reads fail. */
  takeWarnings(): string[] {
    const warnings = [...this.#warnings];
    this.#warnings.clear();
    return warnings;
  }

  /** Waits for the writes under way, and then closes everything that the adapter has open. */
  async close(): Promise<void> {
    this.limits.stop();
    await this.usage.close();
    await this.rows.close();
    for (const rows of this.#local) await rows.close();
    // An earlier change may have needed the reserve of a full disk.
    if (existsSync(this.#root)) restoreReserve(this.#root);
  }

  /** How long a small write with a sync to disk takes, in milliseconds. Null if there is no state folder so far. */
  async #syncMs(): Promise<number | null> {
    this.#checkFolder();
    const path = join(this.#root, scratchName("tmp"));
    const begun = performance.now();
    try {
      const fd = await writing(this.#root, async () => await writeNewFile(path, Buffer.from("{}")));
      const durationMs = performance.now() - begun;
      closeQuietly(fd);
      return durationMs;
    } catch (error) {
      if (error instanceof Error && systemCode(error.cause) === "ENOENT") return null;
      throw error;
    } finally {
      rmSync(path, { force: true });
    }
  }

  #warn(message: string): void {
    // Somebody with write access to Redis could cause any number of different warnings.
    if (this.#warned.has(message) || this.#warned.size >= MOST_WARNINGS) return;
    this.#warned.add(message);
    this.#warnings.add(message);
  }
}

/** Refuses a state folder with records in files, as a development version wrote them. */
function refuseOlder(root: string): void {
  if (!existsSync(join(root, "registry")) || existsSync(join(root, "state.db"))) return;
  throw olderError(root, `mv ${shellQuote(root)} ${shellQuote(`${root}.old`)} # begins with an empty fleet`);
}

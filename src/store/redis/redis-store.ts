import { createHash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { FleetError, quote, systemCode } from "../../base/errors.js";
import { type NamedSource, SCHEMA } from "../../base/server.js";
import { type RedisUrl, showRedisUrl } from "../../base/values/network.js";
import { shellQuote } from "../../base/values/text.js";
import type { Environment } from "../../config/load/paths.js";
import { newerError } from "../failures.js";
import { reason } from "../file/failures.js";
import { replaceStateFile } from "../file/state-folder.js";
import type { Store, StoreProbe } from "../ports.js";
import { Writes } from "../update-queue.js";
import { Connection } from "./connection.js";
import { Documents, newId, WriterLock } from "./documents.js";
import { corruptError, keysOf } from "./failures.js";
import { RedisHosts, RegistryDocument } from "./hosts.js";
import { RedisLeases } from "./leases.js";
import { LimitDocuments } from "./limits.js";
import { KeyedTurnDocuments, PlacementDocuments, PurgeDocuments, pseudonymKey } from "./records.js";
import { TELL_TIME } from "./scripts.js";
import { SessionDocuments } from "./sessions.js";
import { Signatures, Signer } from "./signatures.js";
import { TokenDocuments } from "./tokens.js";
import { UsageSums } from "./usage.js";

const DEADLINE_MS = 30_000;
const MOST_WARNINGS = 1_000;

/** `storeOptions`, and the variables to which it refers. */
export interface StoreSecrets {
  /** The key that signs the records. Null: the file `store-key` in the state folder. */
  key: NamedSource | null;
  password: NamedSource | null;
  env: Environment;
}

const NO_SECRETS: StoreSecrets = { key: null, password: null, env: {} };

interface RedisStoreOptions {
  /** The name of this host among the hosts that share the fleet. Without it, the fleet serves a single host. */
  host?: string | undefined;
  /** Reads the random id of this host's state folder. With it, the store fails if another host has the same name. */
  instance?: (() => string | null) | undefined;
  secrets?: StoreSecrets | undefined;
  /** How long an update competes with other writers before it fails with `FLEET_STATE_BUSY`, in milliseconds. */
  deadlineMs?: number;
  /** How long one operation waits for Redis before it fails with `FLEET_STORE_UNAVAILABLE`, in milliseconds. */
  operationMs?: number;
}

/**
 * Opens the store in a Redis database, for one host or many. The first operation connects.
 *
 * Besides the errors in the contract, every method may throw FleetError `FLEET_STORE_UNAVAILABLE` (within 5 seconds),
 * `FLEET_STORE_UNUSABLE`, and `FLEET_STATE_LOST` when the database has lost its data.
 *
 * @param root the state folder of this host, which has a file with the epoch of the database
 */
export function openRedisStore(target: RedisUrl, root: string, options: RedisStoreOptions = {}): RedisStore {
  return new RedisStore(target, root, options);
}

export class RedisStore implements Store {
  readonly kind = "redis";
  readonly hosts: RedisHosts | null;
  readonly registry: RegistryDocument;
  readonly sessions: SessionDocuments;
  readonly leases: RedisLeases;
  readonly tokens: TokenDocuments;
  readonly placements: PlacementDocuments;
  readonly keyedTurns: KeyedTurnDocuments;
  readonly purges: PurgeDocuments;
  readonly usage: UsageSums;
  readonly limits: LimitDocuments;
  /** Finds records without a valid signature, and signs them. */
  readonly signatures: Signatures;
  readonly #connection: Connection;
  readonly documents: Documents;
  readonly #writes = new Writes();
  readonly #warnings = new Set<string>();
  /** All warnings so far. A new connection repeats warnings, and {@link takeWarnings} returns each only once. */
  readonly #warned = new Set<string>();

  constructor(target: RedisUrl, root: string, options: RedisStoreOptions) {
    const { host = null, instance, secrets = NO_SECRETS, deadlineMs = DEADLINE_MS, operationMs } = options;
    const keys = keysOf(target.fleet, host);
    const warn = (message: string) => this.#warn(message);
    const epoch = new Epoch(showRedisUrl(target), root, warn);
    const signer = new Signer(root, secrets.key, showRedisUrl(target));
    const connection = new Connection({ target, keys, epoch, signer, secrets, warn, operationMs });
    const documents = new Documents(connection, keys, signer);
    this.#connection = connection;
    this.documents = documents;
    this.hosts = host === null ? null : new RedisHosts(host, instance, documents, warn);
    this.registry = new RegistryDocument({
      hosts: this.hosts,
      documents,
      writerLock: new WriterLock(connection, keys, newId()),
      writes: this.#writes,
      deadlineMs,
      warn,
    });
    this.sessions = new SessionDocuments(documents, this.#writes, deadlineMs);
    this.leases = new RedisLeases(connection, keys);
    this.tokens = new TokenDocuments(documents, root, warn);
    this.placements = new PlacementDocuments(documents);
    this.keyedTurns = new KeyedTurnDocuments(documents);
    this.purges = new PurgeDocuments(documents);
    this.usage = new UsageSums(connection, keys, root, warn);
    this.limits = new LimitDocuments(documents);
    this.signatures = new Signatures(documents);
  }

  async pseudonymKey(offered: string): Promise<string> {
    return await pseudonymKey(this.documents, offered);
  }

  async now(): Promise<number> {
    const [, now] = await this.#connection.run(TELL_TIME, [], []);
    return Number(now);
  }

  async probe(): Promise<StoreProbe> {
    await this.now(); // connects
    const begun = performance.now();
    const theirs = await this.now();
    const durationMs = performance.now() - begun;
    // Redis read its clock about half way between the request and the answer.
    return { durationMs, clockAheadMs: theirs - (Date.now() - durationMs / 2) };
  }

  /**
   * Deletes this host's notes about tokens that have expired. In Redis, there is nothing to sweep: every write is one
   * script, so a killed writer leaves nothing half done, and commit keys and leases expire.
   */
  async sweep(): Promise<void> {
    this.tokens.forgetExpiredEnds(await this.now());
  }

  async forgetOlder(): Promise<void> {
    // There is nothing to remove, because Redis stores only the current state of records.
  }

  takeWarnings(): string[] {
    const warnings = [...this.#warnings];
    this.#warnings.clear();
    return warnings;
  }

  async close(): Promise<void> {
    await this.#writes.settled();
    this.limits.stop();
    await this.usage.close();
    await this.#connection.close();
  }

  #warn(message: string): void {
    // Somebody with write access to Redis could cause any number of different warnings.
    if (this.#warned.has(message) || this.#warned.size >= MOST_WARNINGS) return;
    this.#warned.add(message);
    this.#warnings.add(message);
  }
}

const EPOCH = /^(\d{1,9}) \S+$/;

/**
 * Detects whether a database has lost its data. The first write gives the database an epoch, which is a random id.
 * Every read and every script compares the epoch, so that no process mistakes a lost registry for an empty one.
 */
export class Epoch {
  readonly fresh = `${SCHEMA} ${randomBytes(16).toString("hex")}`;
  readonly #where: string;
  readonly #root: string;
  readonly #warn: (message: string) => void;
  /**
   * The path of a file with the epoch that this host found last. The next process compares it with the epoch of the
   * database. The fleet also works without the file.
   */
  readonly #notePath: string;
  #known: string | undefined;
  #noted: string | undefined;

  /** @param where the URL of the database without secrets, which identifies the database on this host */
  constructor(where: string, root: string, warn: (message: string) => void) {
    this.#where = where;
    this.#root = root;
    this.#warn = warn;
    this.#notePath = join(root, `redis-${createHash("sha256").update(where).digest("hex").slice(0, 12)}.json`);
  }

  get known(): string | undefined {
    return this.#known;
  }

  /**
   * The epoch that the database must have, or undefined if no epoch is known. Read this property before you send a
   * request, because its value may change during the request.
   */
  get expected(): string | undefined {
    return this.#known ?? this.#noted;
  }

  /** Reads the epoch from the file. Call this before you open a connection. */
  recall(): void {
    if (this.#noted !== undefined) return;
    try {
      const { epoch } = JSON.parse(readFileSync(this.#notePath, "utf8")) as { epoch?: unknown };
      if (typeof epoch === "string") this.#noted = epoch;
    } catch (error) {
      if (systemCode(error) !== "ENOENT") this.#warn(`${quote(this.#notePath)} cannot be read: ${reason(error)}.`);
    }
  }

  /** Compares the epoch in the database with the expected one. @throws FleetError `FLEET_STATE_LOST` */
  meet(found: string | null, expected: string | undefined): void {
    if (found === null) {
      if (expected !== undefined) throw this.lost("it is empty");
      return;
    }
    if (found === this.#known) return;
    const schema = Number(EPOCH.exec(found)?.[1] ?? 0);
    if (schema > SCHEMA) throw newerError(this.#where, schema);
    if (schema === 0) throw corruptError(this.#where, "its epoch is not valid");
    if (this.expected !== undefined && this.expected !== found) throw this.lost("its epoch has changed");
    this.#known = found;
    if (this.#noted === undefined) this.#write(found);
    this.#noted = found;
  }

  #write(epoch: string): void {
    const path = this.#notePath;
    try {
      replaceStateFile(this.#root, path, { database: this.#where, epoch });
    } catch (error) {
      this.#warn(`${quote(path)} cannot be written, so a loss of Redis's data would go unnoticed: ${reason(error)}.`);
    }
  }

  lost(how: string): FleetError {
    const path = this.#notePath;
    const message = `The Redis database ${quote(this.#where)} lost its data (${how}). Servers and sessions that it does not know may still exist.`;
    return new FleetError("FLEET_STATE_LOST", message, {
      suggestions: [
        "Restore a backup of the Redis database.",
        "To continue without the lost data and end the servers of this host, run the next command.",
        `mv ${shellQuote(path)} ${shellQuote(`${path}.lost`)} && copilotfleet doctor --fix`,
      ],
    });
  }
}

import { type RedisUrl, showRedisUrl } from "../../config/values/redis-url.js";
import type { Store, StoreProbe } from "../ports.js";
import { Writes } from "../update-queue.js";
import { Connection } from "./link/connection.js";
import { Epoch } from "./link/epoch.js";
import { keysOf } from "./link/keys.js";
import { pseudonymKey } from "./pseudonym-key.js";
import { PurgeDocuments } from "./purges.js";
import { Documents, newId } from "./records/documents.js";
import { RedisHosts } from "./records/hosts.js";
import { KeyedTurnDocuments } from "./records/keyed-turns.js";
import { RedisLeases } from "./records/leases.js";
import { LimitDocuments } from "./records/limits/limits.js";
import { PlacementDocuments } from "./records/placements.js";
import { RegistryDocument } from "./records/registry.js";
import { SessionDocuments } from "./records/sessions.js";
import { TokenDocuments } from "./records/tokens.js";
import { UsageSums } from "./records/usage/usage.js";
import { WriterLock } from "./records/writer-lock.js";
import { TELL_TIME } from "./scripts/scripts.js";
import { Signatures } from "./signatures/signatures.js";
import { Signer } from "./signatures/signer.js";

const DEADLINE_MS = 30_000;
const MOST_WARNINGS = 1_000;

export interface RedisStoreOptions {
  /** The name of this host among the hosts that share the fleet. Without it, the fleet serves a single host. */
  host?: string | undefined;
  /** Reads the random id of this host's state folder. With it, the store fails if another host has the same name. */
  instance?: (() => string | null) | undefined;
  /** The file with the key that signs the records. Null: the file `store-key` in the state folder. */
  keyFile?: string | null | undefined;
  /** How long an update competes with other writers before it fails with `FLEET_STATE_BUSY`, in milliseconds. */
  deadlineMs?: number;
  /** How long one operation waits for Redis before it fails with `FLEET_STORE_UNAVAILABLE`, in milliseconds. */
  operationMs?: number;
}

/**
 * Opens the store in a Redis database, for one host or many. The first operation connects.
 *
 * Besides the errors in the contract, every method may throw FleetError `FLEET_STORE_UNAVAILABLE` (within 5 seconds),
 * `FLEET_STORE_UNSAFE`, `FLEET_STORE_DENIED`, and `FLEET_STATE_LOST` when the database has lost its data.
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
  readonly #documents: Documents;
  readonly #writes = new Writes();
  readonly #warnings = new Set<string>();
  /** All warnings so far. A new connection repeats warnings, and {@link takeWarnings} returns each only once. */
  readonly #warned = new Set<string>();

  constructor(target: RedisUrl, root: string, options: RedisStoreOptions) {
    const { host = null, instance, keyFile = null, deadlineMs = DEADLINE_MS, operationMs } = options;
    const keys = keysOf(target.fleet, host);
    const warn = (message: string) => this.#warn(message);
    const epoch = new Epoch(showRedisUrl(target), root, warn);
    const signer = new Signer(root, keyFile, showRedisUrl(target));
    const connection = new Connection({ target, keys, epoch, signer, warn, operationMs });
    const documents = new Documents(connection, keys, signer);
    this.#connection = connection;
    this.#documents = documents;
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
    return await pseudonymKey(this.#documents, offered);
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

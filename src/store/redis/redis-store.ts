import { type RedisUrl, showRedisUrl } from "../../config/values/redis-url.js";
import type {
  Lease,
  LeaseAnswer,
  LeaseRequest,
  Placement,
  Registry,
  SessionRecord,
  Store,
  TokenRecord,
  UserPlacement,
} from "../store.js";
import { Connection } from "./link/connection.js";
import { Epoch } from "./link/epoch.js";
import { Keys } from "./link/keys.js";
import { Note } from "./link/note.js";
import { Documents, newId } from "./records/documents.js";
import { RedisHosts } from "./records/hosts.js";
import { RedisLeases } from "./records/leases.js";
import { PlacementDocuments } from "./records/placements.js";
import { RegistryDocument } from "./records/registry.js";
import { SessionDocuments } from "./records/sessions.js";
import { TokenDocuments } from "./records/tokens.js";
import { WriterLock } from "./records/writer-lock.js";
import { TELL_TIME } from "./scripts/scripts.js";

const DEADLINE_MS = 30_000;

export interface RedisStore extends Store {
  readonly kind: "redis";
}

export interface RedisStoreOptions {
  /** The name of this host among the hosts that share the fleet. If it is omitted, the fleet serves a single host. */
  host?: string;
  /**
   * Returns the random id of this host's state folder, or null if it has none. If it is omitted, the store does not
   * check whether another machine uses the host's name.
   */
  instance?: () => string | null;
  /** How long an update competes with other writers before `FLEET_STATE_BUSY`, in milliseconds. */
  deadlineMs?: number;
  /** How long one operation waits for Redis before `FLEET_STORE_UNAVAILABLE`, in milliseconds. */
  operationMs?: number;
}

/**
 * Opens the store in a Redis, for one host or many. It does not connect. The first operation connects and loads the
 * client library.
 *
 * Besides the errors in the contract, every method may throw FleetError `FLEET_STORE_UNAVAILABLE` (within 5 seconds),
 * `FLEET_STORE_UNSAFE`, `FLEET_STORE_DENIED`, and `FLEET_STATE_LOST` when the database has lost its data.
 *
 * @param root The state folder of this host, which keeps a note about the database.
 */
export function openRedisStore(target: RedisUrl, root: string, options: RedisStoreOptions = {}): RedisStore {
  return new DatabaseStore(target, root, options);
}

class DatabaseStore implements RedisStore {
  readonly kind = "redis";
  readonly hosts: RedisHosts | null;
  readonly #connection: Connection;
  readonly #registry: RegistryDocument;
  /** Registry updates from the moment they are requested, because some of them are not in the registry's queue yet. */
  readonly #updates = new Set<Promise<unknown>>();
  readonly #sessions: SessionDocuments;
  readonly #leases: RedisLeases;
  readonly #tokens: TokenDocuments;
  readonly #placements: PlacementDocuments;
  readonly #warnings = new Set<string>();
  /** Warnings given so far, because every new connection would repeat them. */
  readonly #warned = new Set<string>();

  constructor(target: RedisUrl, root: string, options: RedisStoreOptions) {
    const { host = null, instance, deadlineMs = DEADLINE_MS, operationMs } = options;
    const database = showRedisUrl(target);
    const keys = new Keys(target.fleet, host);
    const warn = (message: string) => this.#warn(message);
    const epoch = new Epoch(database, new Note(root, database, warn));
    const connection = new Connection({
      target,
      keys,
      epoch,
      warn,
      ...(operationMs === undefined ? {} : { operationMs }),
    });
    const documents = new Documents(connection, keys);
    this.#connection = connection;
    this.hosts = host === null ? null : new RedisHosts({ own: host, instance, connection, keys });
    this.#registry = new RegistryDocument({
      key: keys.registry,
      isFounding: keys.registry === keys.founding,
      connection,
      documents,
      turns: new WriterLock(connection, keys, newId()),
      deadlineMs,
      warn,
    });
    this.#sessions = new SessionDocuments({ connection, documents, keys, deadlineMs });
    this.#leases = new RedisLeases(connection, keys);
    this.#tokens = new TokenDocuments(connection, documents, keys);
    this.#placements = new PlacementDocuments(connection, documents, keys);
  }

  async readRegistry(): Promise<Registry> {
    await this.hosts?.assertOwn();
    return await this.#registry.read();
  }

  async updateRegistry<T>(change: (draft: Registry) => T): Promise<T> {
    const update = this.#updateOwn(change);
    this.#updates.add(update);
    try {
      return await update;
    } finally {
      this.#updates.delete(update);
    }
  }

  async #updateOwn<T>(change: (draft: Registry) => T): Promise<T> {
    await this.hosts?.assertOwn();
    return await this.#registry.update(change);
  }

  async readSession(id: string): Promise<SessionRecord | null> {
    return await this.#sessions.read(id);
  }

  async createSession(record: SessionRecord): Promise<void> {
    await this.#sessions.create(record);
  }

  async updateSession<T>(id: string, change: (draft: SessionRecord) => T): Promise<T> {
    return await this.#sessions.update(id, change);
  }

  async deleteSession(id: string): Promise<boolean> {
    return await this.#sessions.delete(id);
  }

  async deleteSessions(ids: readonly string[], agree: (record: SessionRecord) => boolean): Promise<string[]> {
    return await this.#sessions.deleteMany(ids, agree);
  }

  async countSessions(owner: string | null): Promise<number> {
    return await this.#sessions.count(owner);
  }

  async listSessions(): Promise<SessionRecord[]> {
    return await this.#sessions.list();
  }

  async createToken(record: TokenRecord): Promise<void> {
    await this.#tokens.create(record);
  }

  async readToken(id: string): Promise<TokenRecord | null> {
    return await this.#tokens.read(id);
  }

  async deleteToken(id: string): Promise<boolean> {
    return await this.#tokens.delete(id);
  }

  async listTokens(): Promise<TokenRecord[]> {
    return await this.#tokens.list();
  }

  async readPlacement(user: string): Promise<Placement | null> {
    return await this.#placements.read(user);
  }

  async recordPlacement(user: string, from: Placement | null, to: Placement): Promise<Placement> {
    return await this.#placements.record(user, from, to);
  }

  async listPlacements(): Promise<UserPlacement[]> {
    return await this.#placements.list();
  }

  async acquireLease(request: LeaseRequest): Promise<LeaseAnswer> {
    return await this.#leases.acquire(request);
  }

  async leaveLeaseQueue(sessionId: string, token: string): Promise<void> {
    await this.#leases.leave(sessionId, token);
  }

  async renewLease(sessionId: string, token: string, ttlMs: number): Promise<Lease> {
    return await this.#leases.renew(sessionId, token, ttlMs);
  }

  async releaseLease(sessionId: string, token: string): Promise<void> {
    await this.#leases.release(sessionId, token);
  }

  async readLease(sessionId: string): Promise<Lease | null> {
    return await this.#leases.read(sessionId);
  }

  async checkLease(sessionId: string, token: string): Promise<Lease> {
    return await this.#leases.check(sessionId, token);
  }

  async now(): Promise<number> {
    const [, now] = await this.#connection.run(TELL_TIME, [], []);
    return Number(now);
  }

  async highestFence(): Promise<number> {
    return await this.#leases.highestFence();
  }

  async raiseFences(above: number): Promise<void> {
    await this.#leases.raiseFences(above);
  }

  /**
   * Nothing to do. Every write is one script, so a killed writer leaves nothing half done. Commit keys and leases
   * expire.
   */
  async sweep(): Promise<void> {
    return undefined;
  }

  takeWarnings(): string[] {
    const warnings = [...this.#warnings];
    this.#warnings.clear();
    return warnings;
  }

  async close(): Promise<void> {
    await Promise.allSettled(this.#updates);
    await this.#sessions.settled();
    await this.#connection.close();
  }

  #warn(message: string): void {
    if (this.#warned.has(message)) return;
    this.#warned.add(message);
    this.#warnings.add(message);
  }
}

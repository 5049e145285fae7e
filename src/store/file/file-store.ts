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
import type { StepHook } from "./commit/commit.js";
import { Document } from "./commit/document.js";
import { sweepFolder } from "./commit/sweep.js";
import type { StoreContext } from "./context.js";
import { LeaseRecords } from "./records/lease-records.js";
import { PlacementRecords } from "./records/placement-records.js";
import { RegistryReader, registryFolder, registrySpec } from "./records/registry.js";
import { SessionRecords } from "./records/session-records.js";
import { TokenRecords } from "./records/token-records.js";
import { checkStateFolder, ensureStateFolder } from "./state-folder.js";

const DEADLINE_MS = 30_000;

export interface FileStore extends Store {
  readonly kind: "file";
}

export interface FileStoreOptions {
  /** How long one update is tried before `FLEET_STATE_BUSY`, in milliseconds. */
  deadlineMs?: number;
  /** Called between the steps of every commit, so that tests can let other writers run there. */
  onStep?: StepHook;
}

/**
 * Opens the store in a folder of this machine. It does not touch the disk. The first use checks the folder, and the
 * first write creates it.
 */
export function openFileStore(root: string, options: FileStoreOptions = {}): FileStore {
  return new FolderStore(root, options);
}

class FolderStore implements FileStore {
  readonly kind = "file";
  /** The lock and the clock of this store belong to one machine. */
  readonly hosts = null;
  readonly #root: string;
  readonly #registry: Document<Registry>;
  readonly #reader: RegistryReader;
  readonly #sessions: SessionRecords;
  readonly #leases: LeaseRecords;
  readonly #tokens: TokenRecords;
  readonly #placements: PlacementRecords;
  readonly #warnings = new Set<string>();
  readonly #warn = (message: string): void => void this.#warnings.add(message);
  #swept = false;

  constructor(root: string, { deadlineMs = DEADLINE_MS, onStep }: FileStoreOptions) {
    this.#root = root;
    const shared: StoreContext = {
      root,
      deadlineMs,
      onStep,
      warn: this.#warn,
      checkRoot: () => checkStateFolder(root),
      ensureRoot: () => ensureStateFolder(root),
    };
    this.#registry = new Document(registrySpec(shared));
    this.#reader = new RegistryReader(root, this.#warn);
    this.#sessions = new SessionRecords(shared);
    this.#leases = new LeaseRecords(shared);
    this.#tokens = new TokenRecords(shared);
    this.#placements = new PlacementRecords(shared);
  }

  async readRegistry(): Promise<Registry> {
    checkStateFolder(this.#root);
    return this.#reader.read();
  }

  async updateRegistry<T>(change: (draft: Registry) => T): Promise<T> {
    const result = await this.#registry.update(change);
    await this.#sweepOnce();
    return result;
  }

  async readSession(id: string): Promise<SessionRecord | null> {
    checkStateFolder(this.#root);
    return this.#sessions.read(id);
  }

  async createSession(record: SessionRecord): Promise<void> {
    await this.#sessions.create(record);
  }

  async updateSession<T>(id: string, change: (draft: SessionRecord) => T): Promise<T> {
    return this.#sessions.update(id, change);
  }

  async deleteSession(id: string): Promise<boolean> {
    checkStateFolder(this.#root);
    const deleted = await this.#sessions.delete(id);
    // Delete the lease last, so that its holder keeps it until the record is gone.
    await this.#leases.delete(id);
    return deleted;
  }

  async deleteSessions(ids: readonly string[], agree: (record: SessionRecord) => boolean): Promise<string[]> {
    checkStateFolder(this.#root);
    return this.#sessions.deleteMany(ids, agree);
  }

  async countSessions(owner: string | null, limit: number): Promise<number> {
    checkStateFolder(this.#root);
    return this.#sessions.count(owner, limit);
  }

  async listSessions(): Promise<SessionRecord[]> {
    checkStateFolder(this.#root);
    return this.#sessions.list();
  }

  async acquireLease(request: LeaseRequest): Promise<LeaseAnswer> {
    return this.#leases.acquire(request);
  }

  async leaveLeaseQueue(sessionId: string, token: string): Promise<void> {
    await this.#leases.leave(sessionId, token);
  }

  async renewLease(sessionId: string, token: string, ttlMs: number): Promise<Lease> {
    return this.#leases.renew(sessionId, token, ttlMs);
  }

  async releaseLease(sessionId: string, token: string): Promise<void> {
    await this.#leases.release(sessionId, token);
  }

  async readLease(sessionId: string): Promise<Lease | null> {
    checkStateFolder(this.#root);
    return this.#leases.read(sessionId);
  }

  async checkLease(sessionId: string, token: string): Promise<Lease> {
    checkStateFolder(this.#root);
    return this.#leases.check(sessionId, token);
  }

  async createToken(record: TokenRecord): Promise<void> {
    await this.#tokens.create(record);
  }

  async readToken(id: string): Promise<TokenRecord | null> {
    checkStateFolder(this.#root);
    return this.#tokens.read(id);
  }

  async deleteToken(id: string): Promise<boolean> {
    checkStateFolder(this.#root);
    return this.#tokens.delete(id);
  }

  async listTokens(): Promise<TokenRecord[]> {
    checkStateFolder(this.#root);
    return this.#tokens.list();
  }

  async readPlacement(user: string): Promise<Placement | null> {
    checkStateFolder(this.#root);
    return this.#placements.read(user);
  }

  async listPlacements(): Promise<UserPlacement[]> {
    return this.#placements.list();
  }

  async recordPlacement(user: string, from: Placement | null, to: Placement): Promise<Placement> {
    return await this.#placements.record(user, from, to);
  }

  async now(): Promise<number> {
    return Date.now();
  }

  async highestFence(): Promise<number> {
    checkStateFolder(this.#root);
    return this.#leases.highestFence();
  }

  async raiseFences(fence: number): Promise<void> {
    await this.#leases.raiseFences(fence);
  }

  takeWarnings(): string[] {
    const warnings = [...this.#warnings];
    this.#warnings.clear();
    return warnings;
  }

  async close(): Promise<void> {
    await this.#registry.pending;
    await this.#sessions.settled();
    await this.#leases.settled();
  }

  async sweep(): Promise<void> {
    checkStateFolder(this.#root);
    await this.#leases.sweepOrphans((id) => this.#sessions.has(id));
    const documents = [...this.#sessions.folders(), ...this.#leases.folders()];
    for (const folder of [this.#root, registryFolder(this.#root), ...documents]) await sweepFolder(folder);
  }

  /** Sweeps the state folder once. The commits in the folders of records and of the registry sweep those folders. */
  async #sweepOnce(): Promise<void> {
    if (this.#swept) return;
    this.#swept = true;
    await sweepFolder(this.#root);
  }
}

import { lstatSync, readdirSync, readFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { FleetError, quote, systemCode } from "../../base/errors.js";
import type { Purge } from "../../base/host.js";
import { userDigest } from "../../base/ids.js";
import { readRedisUrl } from "../../base/values/network.js";
import type { PurgeStore, Store, StoreProbe } from "../ports.js";
import { openRedisStore, type StoreSecrets } from "../redis/redis-store.js";
import { Writes } from "../update-queue.js";
import { UsageFolder } from "../usage/usage-folder.js";
import { decodeRevision, isQuarantined, listFolder, revisionName, type StepHook, sweepFolder } from "./commit.js";
import { closeQuietly, scratchName, unlinkQuietly, writeNewFile } from "./durable.js";
import { readIfThere, type StoreContext, writing } from "./failures.js";
import { type Instant, LeaseRecords, now } from "./records/lease-records.js";
import { LimitRecords } from "./records/limit-records.js";
import { RecordFiles } from "./records/record-folder.js";
import { RegistryRecord } from "./records/registry.js";
import { SessionRecords } from "./records/session-records.js";
import { KeyedTurnRecords, PlacementRecords, TokenRecords } from "./records/token-records.js";
import { ensureStateFolder, stateFolderCheck } from "./state-folder.js";

const DEADLINE_MS = 30_000;

interface FileStoreOptions {
  /** How long one update retries before it fails with `FLEET_STATE_BUSY`, in milliseconds. */
  deadlineMs?: number;
  /** Called between the steps of every commit. With it, a test runs another writer between two steps. */
  onStep?: StepHook;
  /** Reads the clock for leases. Replaced in tests. Default: {@link now}. */
  leaseNow?: () => Instant;
}

/** Opens the store in the state folder `root`. The first use checks the folder, and the first write creates it. */
export function openFileStore(root: string, options: FileStoreOptions = {}): FileStore {
  return new FileStore(root, options);
}

export class FileStore implements Store {
  readonly kind = "file";
  /** Null because the lock and the clock of this store work only on one machine. */
  readonly hosts = null;
  readonly registry: RegistryRecord;
  readonly sessions: SessionRecords;
  readonly leases: LeaseRecords;
  readonly tokens: TokenRecords;
  readonly placements: PlacementRecords;
  readonly keyedTurns: KeyedTurnRecords;
  readonly purges: PurgeRecords;
  readonly usage: UsageFolder;
  readonly limits: LimitRecords;
  readonly #context: StoreContext;
  readonly #warnings = new Set<string>();

  constructor(root: string, { deadlineMs = DEADLINE_MS, onStep, leaseNow = now }: FileStoreOptions) {
    this.#context = {
      root,
      deadlineMs,
      onStep,
      leaseNow,
      writes: new Writes(),
      warn: (message) => void this.#warnings.add(message),
      checkRoot: stateFolderCheck(root),
      ensureRoot: () => ensureStateFolder(root),
    };
    this.registry = new RegistryRecord(this.#context);
    this.leases = new LeaseRecords(this.#context);
    this.sessions = new SessionRecords(this.#context, this.leases);
    this.tokens = new TokenRecords(this.#context);
    this.placements = new PlacementRecords(this.#context);
    this.keyedTurns = new KeyedTurnRecords(this.#context);
    this.purges = new PurgeRecords(this.#context);
    this.usage = new UsageFolder(root, this.#context.ensureRoot);
    this.limits = new LimitRecords(this.#context, this.sessions);
  }

  /** Returns `offered`, the key in this host's state folder. With only one host, there is no other key to agree on. */
  async pseudonymKey(offered: string): Promise<string> {
    return offered;
  }

  async now(): Promise<number> {
    return Date.now();
  }

  async probe(): Promise<StoreProbe> {
    const { root, checkRoot } = this.#context;
    checkRoot();
    const path = join(root, scratchName("tmp"));
    const begun = performance.now();
    try {
      const fd = await writing(root, async () => await writeNewFile(path, Buffer.from("{}")));
      const durationMs = performance.now() - begun;
      closeQuietly(fd);
      return { durationMs, clockAheadMs: 0 };
    } catch (error) {
      const isNew = error instanceof Error && systemCode(error.cause) === "ENOENT";
      if (isNew) return { durationMs: null, clockAheadMs: 0 };
      throw error;
    } finally {
      await rm(path, { force: true });
    }
  }

  takeWarnings(): string[] {
    const warnings = [...this.#warnings];
    this.#warnings.clear();
    return warnings;
  }

  async close(): Promise<void> {
    await this.#context.writes.settled();
    await this.usage.close();
  }

  async forgetOlder(texts: readonly string[]): Promise<void> {
    const { root, checkRoot } = this.#context;
    checkRoot();
    forgetOlder(
      root,
      [this.registry.folder, ...this.sessions.records.folders(), ...this.leases.records.folders()],
      texts,
    );
  }

  async sweep(): Promise<void> {
    const { root, checkRoot } = this.#context;
    checkRoot();
    await this.leases.sweepOrphans((id) => this.sessions.records.has(id));
    const records = [this.sessions.records, this.leases.records, this.limits.limits];
    const documents = records.flatMap((each) => each.folders());
    for (const folder of [root, this.registry.folder, ...documents]) await sweepFolder(folder);
  }
}

/** The records of the purges that are under way, each in its own file. */
class PurgeRecords implements PurgeStore {
  readonly #files: RecordFiles<Purge>;

  constructor(context: StoreContext) {
    this.#files = new RecordFiles(context, "purges", () => "copilotfleet user purge USER");
  }

  async read(user: string): Promise<Purge | null> {
    return this.#files.read(userDigest(user));
  }

  async begin(purge: Purge): Promise<Purge> {
    const name = userDigest(purge.user);
    for (;;) {
      if (await this.#files.create(name, purge)) return purge;
      const earlier = this.#files.read(name);
      // If null, an earlier purge ended between `create` and `read`. Try again.
      if (earlier !== null) return earlier;
    }
  }

  async done(user: string): Promise<void> {
    // This store serves only one host. Once that host has erased its data, the purge is over.
    await this.#files.delete(userDigest(user));
  }

  async list(): Promise<Purge[]> {
    return this.#files.list();
  }
}

/**
 * Removes outdated files that contain one of `texts`: older revisions of documents, scratch files, and copies of
 * damaged files. Each document keeps its newest revision. It also keeps its newest intact revision, because readers
 * use that one while the newest is damaged.
 *
 * @param folders the folders of the documents
 */
function forgetOlder(root: string, folders: readonly string[], texts: readonly string[]): void {
  for (const folder of folders) {
    const listing = listFolder(folder);
    const { revisions, others } = listing ?? { revisions: [], others: [] };
    const [newest] = revisions;
    const intact = revisions.find((rev) => isIntact(folder, rev));
    const older = revisions.filter((rev) => rev !== newest && rev !== intact);
    forget(folder, [...older.map(revisionName), ...others], texts);
  }
  const names = readIfThere(root, () => readdirSync(root)) ?? [];
  forget(root, names.filter(isQuarantined), texts);
}

function isIntact(folder: string, rev: number): boolean {
  const path = join(folder, revisionName(rev));
  // The tombstone of a deleted document is a link.
  if (lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink() === true) return true;
  const bytes = readIfThere(path, () => readFileSync(path));
  return bytes !== undefined && decodeRevision(bytes, rev).kind !== "damaged";
}

function forget(folder: string, names: readonly string[], texts: readonly string[]): void {
  for (const name of names) {
    const path = join(folder, name);
    const bytes = readIfThere(path, () => readFileSync(path));
    if (bytes !== undefined && texts.some((text) => bytes.includes(text))) unlinkQuietly(path);
  }
}

/**
 * Opens the file store if `url` is "file", or the store at a Redis URL. The other parameters are those of {@link
 * openRedisStore}.
 */
export function openStore(
  url: string,
  root: string,
  host?: string,
  instance?: () => string | null,
  secrets?: StoreSecrets,
): Store {
  if (url === "file") return openFileStore(root);
  const target = readRedisUrl(url);
  if (target !== null) return openRedisStore(target, root, { host, instance, secrets });
  // The URL may contain a password, so show only its scheme.
  const named = /^[a-z][a-z0-9+.-]*:/i.exec(url)?.[0] ?? url;
  throw new FleetError("FLEET_CONFIG_INVALID", `The store ${quote(named)} is not supported. Use "file" or Redis.`, {
    suggestions: ['Set "store" to "file" or to a redis:// URL in the configuration.'],
  });
}

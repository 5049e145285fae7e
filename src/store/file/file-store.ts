import { rm } from "node:fs/promises";
import { join } from "node:path";
import { systemCode } from "../../errors.js";
import type { Store, StoreProbe } from "../ports.js";
import { Writes } from "../update-queue.js";
import { UsageFolder } from "../usage/usage-folder.js";
import type { StepHook } from "./commit/commit.js";
import { closeQuietly, scratchName, writeNewFile } from "./commit/durable.js";
import { sweepFolder } from "./commit/sweep.js";
import type { StoreContext } from "./context.js";
import { writing } from "./failures.js";
import { forgetOlder } from "./forget.js";
import { PurgeRecords } from "./purges.js";
import { KeyedTurnRecords } from "./records/keyed-turn-records.js";
import { type Instant, now } from "./records/lease-clock.js";
import { LeaseRecords } from "./records/lease-records.js";
import { LimitRecords } from "./records/limits/limit-records.js";
import { PlacementRecords } from "./records/placement-records.js";
import { RegistryRecord } from "./records/registry.js";
import { SessionRecords } from "./records/session-records.js";
import { TokenRecords } from "./records/token-records.js";
import { ensureStateFolder, stateFolderCheck } from "./state-folder.js";

const DEADLINE_MS = 30_000;

export interface FileStoreOptions {
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

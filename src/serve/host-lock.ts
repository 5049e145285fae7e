import { readFileSync, realpathSync, rmSync } from "node:fs";
import { join } from "node:path";
import { FleetError, quote, systemCode } from "../base/errors.js";
import type { ProcessIdentity, Registry, SupervisorRecord } from "../base/server.js";
import { isLoopback, readRedisUrl, showRedisUrl } from "../base/values/network.js";
import { parseObject } from "../base/values/text.js";
import type { Config } from "../config/schema.js";
import { unwritable } from "../runtime/files/server-folder.js";
import { ownHostName } from "../runtime/files/shared-storage.js";
import { ownVersion } from "../runtime/launch/versions.js";
import { isAlive, ownIdentity } from "../runtime/process/process-table.js";
import { readIfThere } from "../store/file/failures.js";
import { replaceStateFile } from "../store/file/state-folder.js";
import type { Store } from "../store/store.js";

/**
 * The lock that allows one supervisor on this host. The registry records the process identity of the lock's holder. So
 * the lock is free once its holder has died, even if another process now has the same PID.
 */
export class HostLock {
  readonly #store: Store;

  private constructor(store: Store) {
    this.#store = store;
  }

  /**
   * Takes the lock, and opens the pool again if it was drained. Throws `FLEET_SUPERVISOR_RUNNING` if another supervisor
   * is alive.
   */
  static async take(store: Store): Promise<HostLock> {
    const own = ownIdentity();
    await store.registry.update((registry) => {
      const others = registry.supervisors ?? [];
      const first = others.find(({ process }) => isAlive(process));
      if (first !== undefined) throw taken(first);
      const startedAt = new Date().toISOString();
      registry.supervisors = others.filter(({ process }) => process.host !== own.host);
      registry.supervisors.push({ process: own, state: "serving", startedAt, version: ownVersion(), metrics: null });
      delete registry.drainedAt;
    });
    return new HostLock(store);
  }

  /** Whether this process still holds the lock. */
  isHeld(registry: Registry): boolean {
    return ownRecord(registry) !== undefined;
  }

  async announce(addresses: Pick<SupervisorRecord, "metrics" | "door" | "http">): Promise<void> {
    await this.#change((record) => {
      Object.assign(record, addresses);
    });
  }

  /** Makes every process of this host refuse new servers and turns. */
  async closePool(): Promise<void> {
    await this.#change((record) => {
      record.state = "draining";
    });
  }

  async leave(): Promise<void> {
    await this.#change((record, registry) => {
      registry.supervisors = registry.supervisors?.filter((each) => each !== record) ?? [];
    });
  }

  async #change(change: (record: SupervisorRecord, registry: Registry) => void): Promise<void> {
    await this.#store.registry.update((registry) => {
      const own = ownRecord(registry);
      if (own !== undefined) change(own, registry);
    });
  }
}

function ownRecord({ supervisors = [] }: Registry): SupervisorRecord | undefined {
  const own = ownIdentity();
  return supervisors.find(
    ({ process }) => process.pid === own.pid && process.startTicks === own.startTicks && isAlive(process),
  );
}

function taken({ process, startedAt, state }: SupervisorRecord): FleetError {
  const message = `This fleet is already supervised by process ${process.pid}, which started at ${startedAt}${state === "draining" ? " (it is about to end)" : ""}.`;
  return new FleetError("FLEET_SUPERVISOR_RUNNING", message, {
    suggestions: [
      "copilotfleet top --once # shows what it supervises",
      "To replace it, end it first. It then waits for turns and stops its servers.",
    ],
  });
}

/** The settings that decide where the state is. `store` is a URL without secrets, because messages show it. */
interface Settings {
  store: string;
  "host.name": string | null;
  "storage.shared": string | null;
}

/** The note that `serve` writes into its state folder. */
interface ServingNote {
  process: ProcessIdentity;
  settings: Settings;
}

function pathOf(stateRoot: string): string {
  return join(stateRoot, "serving.json");
}

function settingsOf(config: Config, stateRoot: string): Settings {
  const { store, storage } = config;
  if (store.kind === "file") return { store: "file", "host.name": null, "storage.shared": null };
  const target = readRedisUrl(store.url);
  return {
    store: target === null ? "" : showRedisUrl(target),
    "host.name": ownHostName(config, stateRoot),
    "storage.shared": storage.shared,
  };
}

export function noteServing(config: Config, stateRoot: string): void {
  const note: ServingNote = { process: ownIdentity(), settings: settingsOf(config, stateRoot) };
  try {
    replaceStateFile(stateRoot, pathOf(stateRoot), note);
  } catch (error) {
    throw unwritable(pathOf(stateRoot), error);
  }
}

/** Removes this process's note. */
export function forgetServing(stateRoot: string): void {
  const own = ownIdentity();
  const noted = readNote(stateRoot)?.process;
  if (noted?.pid === own.pid && noted.startTicks === own.startTicks) rmSync(pathOf(stateRoot), { force: true });
}

/**
 * Refuses settings that differ from those of the `serve` that runs on this state folder. With another store, this
 * process would not see the servers of that `serve`, and would start other servers with the same homes.
 */
export function refuseOtherSettings(config: Config, stateRoot: string): void {
  const note = readNote(stateRoot);
  if (note === null || !isAlive(note.process)) return;
  const own = settingsOf(config, stateRoot);
  for (const name of Object.keys(own) as (keyof Settings)[]) {
    const [given, serving] = [own[name], note.settings[name]];
    if (isSame(name, given, serving)) continue;
    const [here, there] = [given, serving].map((value) => (value === null ? "not set" : quote(value)));
    const message = `${name} is ${here}. For the serve that runs on the state folder ${quote(stateRoot)} (process ${note.process.pid}), it is ${there}.`;
    throw new FleetError("FLEET_CONFIG_INVALID", message, {
      suggestions: [
        `Set ${name} to the value that serve uses, or set COPILOTFLEET_HOME to another folder.`,
        `kill -TERM ${note.process.pid}  # ends that serve`,
      ],
    });
  }
}

function isSame(name: keyof Settings, one: string | null, other: string | null): boolean {
  if (one === other) return true;
  if (one === null || other === null || name === "host.name") return false;
  return name === "store" ? isSameStore(one, other) : isSameFolder(one, other);
}

/**
 * Whether two URLs name the same database, even if they differ in the user, the encryption, or the name of this
 * machine.
 */
function isSameStore(one: string, other: string): boolean {
  const [a, b] = [readRedisUrl(one), readRedisUrl(other)];
  if (a === null || b === null) return false;
  const isSameHost = a.host === b.host || (isLoopback(a) && isLoopback(b));
  return isSameHost && a.port === b.port && a.db === b.db && a.fleet === b.fleet;
}

function isSameFolder(one: string, other: string): boolean {
  try {
    return realpathSync(one) === realpathSync(other);
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    return false; // one of them does not exist
  }
}

function readNote(stateRoot: string): ServingNote | null {
  const path = pathOf(stateRoot);
  const text = readIfThere(path, () => readFileSync(path, "utf8"));
  const { process, settings } = (parseObject(text ?? "") ?? {}) as Partial<ServingNote>;
  return process === undefined || settings === undefined ? null : { process, settings };
}

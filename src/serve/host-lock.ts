import { FleetError } from "../base/errors.js";
import type { Registry, SupervisorRecord } from "../base/server.js";
import { ownVersion } from "../runtime/launch/versions.js";
import { isAlive, ownIdentity } from "../runtime/process/process-table.js";
import type { Store } from "../store/ports.js";

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

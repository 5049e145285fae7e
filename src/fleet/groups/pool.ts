import { actingAs } from "../../events/acting.js";
import { closePool, liveSupervisor, openPool, type PoolState, poolState } from "../../pool/admission.js";
import type { Stopped } from "../../pool/stop/stop.js";
import { NEVER } from "../../runtime/clock.js";
import type { Supervisor } from "../../serve/supervisor.js";
import * as arg from "../arguments.js";
import type { StopRequest, SuperviseOptions } from "../options.js";
import type { FleetParts } from "../parts.js";
import type { DoorGroup } from "./doors.js";
import { Group } from "./group.js";

/** The `serve` of this host. */
export interface SupervisorView {
  pid: number;
  /** The version of copilotfleet that runs this `serve`; null if its record lacks it. */
  version: string | null;
  state: "serving" | "draining";
  /** ISO 8601, UTC. */
  startedAt: string;
  /** `host:port` of its metrics and health endpoints; null while it starts. */
  metrics: string | null;
  /** `host:port` of its front door; null if it has none. */
  door: string | null;
  /** The URL of its HTTP API; null if it has none. */
  http: string | null;
}

/** All servers of this host together. */
export class PoolGroup extends Group {
  readonly #doors: DoorGroup;

  constructor(parts: FleetParts, doors: DoorGroup) {
    super(parts);
    this.#doors = doors;
  }

  /** Returns whether the pool admits new servers and turns, and if not, the reason. */
  async state(): Promise<PoolState> {
    return poolState(await this.parts.store.registry.read());
  }

  /**
   * Closes the pool to new servers and turns of any process. Waits for turns in flight, and stops all servers.
   * {@link undrain} opens the pool again. The next supervisor also does so when it starts, and starts the stopped
   * servers.
   *
   * @throws FleetError `FLEET_DURATION_INVALID` when a timeout is malformed or out of bounds.
   */
  async drain(options: StopRequest = {}): Promise<{ stopped: Stopped[] }> {
    const { store, pool, own, config } = this.parts;
    await closePool(store);
    const ids = (await pool.all()).map(({ id }) => id);
    const { drainTimeoutMs = config.drain.timeoutMs, force = false, signal = NEVER, onProgress } = options;
    return { stopped: await own.stopAll(ids, { drainTimeoutMs, force, signal, onProgress, stays: true }) };
  }

  /** Opens the drained pool again. */
  async undrain(): Promise<void> {
    await openPool(this.parts.store);
  }

  /**
   * Supervises the servers of this host, as the command `serve` does, until the {@link Supervisor} drains or leaves.
   *
   * @throws FleetError `FLEET_SUPERVISOR_RUNNING` when this host has a supervisor; `FLEET_ADDRESS_TAKEN` or
   * `FLEET_ADDRESS_UNUSABLE` when it cannot listen on an address.
   */
  async supervise(options: SuperviseOptions): Promise<Supervisor> {
    // Import the supervisor only here, because every command except `serve` starts faster without it.
    const { Supervisor } = await import("../../serve/supervisor.js");
    const { store, pool, directory, clock, config, stateRoot, provider, requests, events } = this.parts;
    const { ledger, own, hosts, endings, takeWarnings } = this.parts;
    const { log, listen: given = config.serve.listen, http: givenHttp = config.serve.http, signal = NEVER } = options;
    const listen = given === null ? null : arg.readListener(given, "listen");
    const http = givenHttp === null ? null : arg.readListener(givenHttp, "http");
    const parts = { store, pool, directory, clock, config, stateRoot, provider, requests, events, ledger };
    const fleet = { ...parts, takeWarnings, log, listen, http, doors: this.#doors, host: own, hosts };
    const supervisor = await actingAs({ via: "fleet" }, async () => await Supervisor.start(fleet, signal));
    endings.unshift(async () => await supervisor.leave());
    return supervisor;
  }

  /** Returns the PID of the `serve` that supervises this host; null if none runs. */
  async supervisorPid(): Promise<number | null> {
    return (await this.supervisor())?.pid ?? null;
  }

  /** Returns the `serve` that supervises this host; null if none runs. */
  async supervisor(): Promise<SupervisorView | null> {
    const record = liveSupervisor(await this.parts.store.registry.read());
    if (record === undefined) return null;
    const { process, version = null, state, startedAt, metrics, door = null, http = null } = record;
    return { pid: process.pid, version, state, startedAt, metrics, door, http };
  }

  static {
    Group.guard(PoolGroup.prototype, {
      state: [],
      drain: [arg.optional(arg.STOP)],
      undrain: [],
      supervise: [
        ["options", arg.options({ log: arg.required(arg.callback), ...arg.LISTEN, ...arg.HTTP, ...arg.SIGNAL })],
      ],
      supervisorPid: [],
      supervisor: [],
    });
  }
}

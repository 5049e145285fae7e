import type { Config } from "../config/schema.js";
import type { FleetOptions } from "../hosts/options.js";
import { readFleetOptions } from "../operations/fields.js";
import { ClientGroup, LeaseGroup } from "./groups/clients.js";
import { DescriptionGroup } from "./groups/descriptions.js";
import { DoorGroup } from "./groups/doors.js";
import { EventGroup } from "./groups/events.js";
import { HostGroup, PoolGroup, ServerGroup } from "./groups/servers.js";
import { SessionGroup } from "./groups/sessions.js";
import { TokenGroup } from "./groups/tokens.js";
import { LimitGroup, UsageGroup } from "./groups/usage.js";
import { UserGroup } from "./groups/users.js";
import { type FleetParts, openParts } from "./parts.js";

/**
 * The fleet of one state folder. It has the same servers, sessions and rules as the command `copilotfleet`. Any number
 * of processes may have it open at once.
 *
 * Closing it (`await using`, or {@link Fleet.close}) ends the connections of this process. Servers and sessions stay.
 * After that, every method fails with `FLEET_CLOSED`.
 *
 * A duration is a text such as "30s" or a number of milliseconds. An argument that is not allowed is a usage error. A
 * method that lists something returns an array. A method that changes something returns an object with named fields, as
 * the command prints it with `--json`.
 */
export class Fleet implements AsyncDisposable {
  /** The configuration in force. */
  readonly config: Config;
  /** The absolute path of the folder with all state of this host. */
  readonly stateRoot: string;
  readonly servers: ServerGroup;
  readonly sessions: SessionGroup;
  readonly leases: LeaseGroup;
  readonly clients: ClientGroup;
  readonly tokens: TokenGroup;
  readonly limits: LimitGroup;
  readonly users: UserGroup;
  readonly doors: DoorGroup;
  readonly pool: PoolGroup;
  readonly hosts: HostGroup;
  readonly descriptions: DescriptionGroup;
  readonly usage: UsageGroup;
  readonly events: EventGroup;
  readonly #parts: FleetParts;

  private constructor(parts: FleetParts) {
    this.config = parts.config;
    this.stateRoot = parts.stateRoot;
    this.servers = new ServerGroup(parts);
    this.sessions = new SessionGroup(parts);
    this.leases = new LeaseGroup(parts);
    this.clients = new ClientGroup(parts);
    this.tokens = new TokenGroup(parts);
    this.limits = new LimitGroup(parts);
    this.hosts = new HostGroup(parts);
    this.events = new EventGroup(parts);
    this.usage = new UsageGroup(parts);
    this.users = new UserGroup(parts, this.sessions);
    this.doors = new DoorGroup(parts, this);
    this.pool = new PoolGroup(parts, this.doors);
    this.descriptions = new DescriptionGroup(parts);
    this.#parts = parts;
  }

  /**
   * Opens the fleet that the environment and the configuration files name. Starts nothing and writes nothing.
   *
   * @throws FleetError `FLEET_CONFIG_…` when the configuration is not allowed, or its store, host name or shared folder
   * differs from that of a `serve` running on the same state folder; `FLEET_STATE_UNSAFE` when others could change the
   * state folder.
   */
  static async open(options: FleetOptions = {}): Promise<Fleet> {
    readFleetOptions(options);
    return new Fleet(openParts(options));
  }

  /**
   * Returns the warnings since the last call, such as a damaged record, a host that did not answer, or a turn that was
   * answered but could not be recorded.
   */
  takeWarnings(): string[] {
    return this.#parts.takeWarnings();
  }

  /**
   * Ends all connections of this process. Closes its front doors at once, which cuts their turns, and ends its
   * supervision of servers. Deletes the ephemeral sessions that this fleet has open. Servers and other sessions stay.
   */
  async close(): Promise<void> {
    await this.#parts.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

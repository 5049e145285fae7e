import type { HttpDoor } from "../../api/door.js";
import type { HttpContext } from "../../api/door-state.js";
import type { Address } from "../../config/rules.js";
import type { FrontDoor } from "../../gateway/door.js";
import type { HostCalls } from "../../gateway/entry/control.js";
import * as arg from "../arguments.js";
import type { OpenDoorOptions, OpenHttpDoorOptions } from "../options.js";
import type { FleetParts } from "../parts.js";
import type { EventGroup } from "./events/events.js";
import { Group } from "./group.js";
import type { HostGroup } from "./hosts.js";
import type { ServerGroup } from "./servers.js";
import type { SessionGroup } from "./sessions.js";
import type { TokenGroup } from "./tokens.js";
import type { UsageGroup } from "./usage/usage.js";
import type { LimitGroup } from "./users/limits.js";
import type { UserGroup } from "./users/users.js";

const ANY_ADDRESS: Address = { host: "127.0.0.1", port: 0 };

/** The groups whose methods the HTTP API calls. */
export interface ApiGroups {
  sessions: SessionGroup;
  servers: ServerGroup;
  hosts: HostGroup;
  tokens: TokenGroup;
  usage: UsageGroup;
  limits: LimitGroup;
  users: UserGroup;
  events: EventGroup;
}

/** The front doors of this process, and the addresses at which it serves the HTTP API. */
export class DoorGroup extends Group {
  readonly #groups: ApiGroups;
  #common: Promise<Pick<HttpContext, "signOn" | "shares">> | undefined;

  constructor(parts: FleetParts, groups: ApiGroups) {
    super(parts);
    this.#groups = groups;
  }

  /**
   * Opens a front door: one address at which any Copilot SDK that presents a user's token can use the fleet like that
   * user's own server. Close the door before the fleet.
   *
   * @param options.listen an address such as "127.0.0.1:4300", port 0 for any free port, or an inherited descriptor
   * that is already listening; if left out, `serve.listen` of the configuration
   * @throws FleetError `FLEET_ADDRESS_TAKEN` or `FLEET_ADDRESS_UNUSABLE` when it cannot listen on the address;
   * `FLEET_CONFIG_INVALID` when other machines can reach the address, and neither `serve.tls` nor `insecure` is set.
   */
  async open(options: OpenDoorOptions = {}): Promise<FrontDoor> {
    // Import these modules only here, because commands that open no front door start faster without them.
    const { openFrontDoor } = await import("../../gateway/door.js");
    const { answerCall } = await import("../../peers/calls/rpc-table.js");
    const { config, store, sessions, pool, directory, clock, own, leases, endings } = this.parts;
    const { listen: given = config.serve.listen ?? ANY_ADDRESS, ...listeners } = options;
    const listen = arg.readListener(given, "listen");
    const context = { config, store, sessions, pool, directory, clock, ...(await this.#sharedState()) };
    const calls: HostCalls = {
      answer: async (method, params, signal) => await answerCall(own, method, params, signal),
    };
    // The caller may hold a lease, but the door's clients must not use it.
    const door = await leases.ambient.outside(() => openFrontDoor(context, calls, { ...listeners, listen }));
    endings.push(async () => await door.close());
    return door;
  }

  /**
   * Opens the HTTP API: one address at which programs that speak HTTP use the fleet with their users' tokens. Close it before
   * the fleet.
   *
   * @param options.listen an address such as "127.0.0.1:4380", port 0 for any free port, or an inherited descriptor that is
   * already listening; if left out, `serve.http` of the configuration
   * @throws FleetError `FLEET_ADDRESS_TAKEN` or `FLEET_ADDRESS_UNUSABLE` when it cannot listen on the address;
   * `FLEET_CONFIG_INVALID` when other machines can reach the address, and neither `serve.tls` nor `insecure` is set.
   */
  async openHttp(options: OpenHttpDoorOptions = {}): Promise<HttpDoor> {
    // Import these modules only here, because a process without the HTTP API must not load them.
    const { openHttpDoor } = await import("../../api/door.js");
    const { apiFleet } = await import("./arguments/api-fleet.js");
    const { config, clock, leases, endings, events } = this.parts;
    const { listen: given = config.serve.http ?? ANY_ADDRESS, ...rest } = options;
    const listen = arg.readListener(given, "listen");
    const fleet = apiFleet(this.parts, this.#groups);
    const context = { config, clock, fleet, events, ...(await this.#sharedState()) };
    // The caller may hold a lease, but the clients must not use it.
    const door = await leases.ambient.outside(() => openHttpDoor(context, { ...rest, listen }));
    endings.push(async () => await door.close());
    return door;
  }

  /**
   * The state that all addresses of this process share, so that a user's limits apply to all addresses together, and
   * all addresses use the same answers from GitHub.
   */
  async #sharedState(): Promise<Pick<HttpContext, "signOn" | "shares">> {
    this.#common ??= (async () => {
      const { Shares } = await import("../../gateway/state/door/shares.js");
      const { SignOn } = await import("../../identity/sign-on.js");
      return { signOn: new SignOn(this.parts), shares: new Shares(this.parts.config.limits, this.parts) };
    })();
    return await this.#common;
  }

  static {
    Group.guard(DoorGroup.prototype, {
      openHttp: [
        arg.optional({
          ...arg.LISTEN,
          onRequest: { check: arg.callback },
          onEvent: { check: arg.callback },
          probes: { check: arg.object },
          ...arg.SIGNAL,
        }),
      ],
      open: [
        arg.optional({
          ...arg.LISTEN,
          onRequest: { check: arg.callback },
          onEvent: { check: arg.callback },
          ...arg.SIGNAL,
        }),
      ],
    });
  }
}

import { isFleetError, option } from "../../base/errors.js";
import { validateSessionId } from "../../base/ids.js";
import type { Address } from "../../config/rules.js";
import type { FrontDoor } from "../../door/door.js";
import type { HostCalls } from "../../door/entry/control.js";
import type {
  CreateSessionOptions,
  OpenDoorOptions,
  OpenHttpDoorOptions,
  ServerFilter,
  SessionFilter,
  UseOptions,
} from "../../hosts/options.js";
import { withActivity } from "../../hosts/overview.js";
import { readEvents } from "../../hosts/sessions/history.js";
import { onRequests } from "../../hosts/sessions/requests.js";
import type { HttpDoor } from "../../http/door.js";
import type { HttpContext } from "../../http/door-state.js";
import { actingAs } from "../../identity/acting.js";
import { type Identity, relationTo } from "../../identity/identity.js";
import { readCode, redeemCode, tokenIdIn } from "../../identity/tokens.js";
import * as arg from "../../operations/fields.js";
import { ownHostName } from "../../runtime/files/shared-storage.js";
import { poolState } from "../../servers/admission.js";
import { SessionExpired } from "../../sessions/problems.js";
import type { RequestChange } from "../../sessions/requests.js";
import type { SessionView } from "../../sessions/view.js";
import type { Fleet } from "../fleet.js";
import type { FleetParts } from "../parts.js";
import { Group } from "./group.js";
import { recordIssue } from "./tokens.js";
import type { UsageOptions } from "./usage.js";

const ANY_ADDRESS: Address = { host: "127.0.0.1", port: 0 };

/** The front doors of this process, and the addresses at which it serves the HTTP API. */
export class DoorGroup extends Group {
  readonly #fleet: Fleet;
  #common: Promise<Pick<HttpContext, "signOn" | "shares">> | undefined;

  constructor(parts: FleetParts, fleet: Fleet) {
    super(parts);
    this.#fleet = fleet;
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
    const { openFrontDoor } = await import("../../door/door.js");
    const { answerCall } = await import("../../hosts/calls/rpc-table.js");
    const { config, own, leases, endings } = this.parts;
    const { listen: given = config.serve.listen ?? ANY_ADDRESS, ...listeners } = options;
    const listen = arg.readListener(given, option("listen"));
    const context = { ...this.parts, ...(await this.#sharedState()) };
    const calls: HostCalls = {
      answer: async (method, params, signal) => await answerCall(own, method, params, signal),
    };
    // The caller may hold a lease, but the door's clients must not use it.
    const door = await leases.ambient.outside(() => openFrontDoor(context, calls, { ...listeners, listen }));
    endings.push(async () => await door.close());
    return door;
  }

  /**
   * Opens the HTTP API: one address at which programs that speak HTTP use the fleet with their users' tokens. Close it
   * before the fleet.
   *
   * @param options.listen an address such as "127.0.0.1:4380", port 0 for any free port, or an inherited descriptor
   * that is already listening; if left out, `serve.http` of the configuration
   * @throws FleetError `FLEET_ADDRESS_TAKEN` or `FLEET_ADDRESS_UNUSABLE` when it cannot listen on the address;
   * `FLEET_CONFIG_INVALID` when other machines can reach the address, and neither `serve.tls` nor `insecure` is set.
   */
  async openHttp(options: OpenHttpDoorOptions = {}): Promise<HttpDoor> {
    // Import these modules only here, because a process without the HTTP API must not load them.
    const { openHttpDoor } = await import("../../http/door.js");
    const { config, leases, endings } = this.parts;
    const { listen: given = config.serve.http ?? ANY_ADDRESS, ...rest } = options;
    const listen = arg.readListener(given, option("listen"));
    const fleet = apiFleet(this.parts, this.#fleet);
    const context = { ...this.parts, fleet, ...(await this.#sharedState()) };
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
      const { Shares } = await import("../../door/state/shares.js");
      const { SignOn } = await import("../../identity/sign-on.js");
      return { signOn: new SignOn(this.parts), shares: new Shares(this.parts.config.limits, this.parts) };
    })();
    return await this.#common;
  }

  static {
    Group.guard(DoorGroup.prototype, { openHttp: ["options"], open: ["options"] });
  }
}

/**
 * Returns a function that runs calls with the same key (such as the user) one after the other. To list sessions, for
 * example, the fleet reads every record, which takes thousands of disk accesses. Many such calls of one user at once
 * would delay the requests of other users for seconds.
 */
function inTurn() {
  const last = new Map<string, Promise<unknown>>();
  return async <T>(key: string, work: () => Promise<T>): Promise<T> => {
    const done = (last.get(key) ?? Promise.resolve()).then(work);
    const over = done.catch(() => undefined);
    last.set(key, over);
    try {
      return await done;
    } finally {
      if (last.get(key) === over) last.delete(key);
    }
  };
}

/** The groups whose methods the routes of the HTTP API call, and what the routes need beyond them. */
export function apiFleet(parts: FleetParts, fleet: Fleet) {
  const { sessions, servers, tokens, limits, users, events, usage } = fleet;
  const { config, store, finder, own } = parts;
  const listing = inTurn();
  const creating = inTurn();
  return {
    sessions,
    servers,
    tokens,
    limits,
    users,
    events,
    /** Creates a session, and does not keep it open. Several calls of a user with the same `key` create one session. */
    createSession: async ({ key, ...options }: CreateSessionOptions & { key?: string }): Promise<SessionView> => {
      const { user, signal: _, gitHubToken: __, ...content } = options;
      const create = async (more: { sessionId?: string }) =>
        await sessions.leave(await sessions.create({ ...options, ...more }), { park: true });
      if (key === undefined) return await create({});
      const { createKeyed } = await import("../../sessions/use/keyed.js");
      const get = async (id: string) => await sessions.get(id, { user });
      const asked = { user, key, content, get, create: async (sessionId: string) => await create({ sessionId }) };
      // Calls with the same key run one after the other, because two calls in one process cannot create the same
      // session at once.
      return await creating(JSON.stringify([user, key]), async () => await createKeyed(store.keyedTurns, asked));
    },
    listSessions: async (filter: SessionFilter) =>
      await listing(filter.user ?? "", async () => await sessions.list(filter)),
    turn: (id: string, prompt: string, options: UseOptions) =>
      sessions.turn(id, prompt, { ...options, interactive: options.interactive ?? config.session.approve === "ask" }),
    /** Calls the listener at each change of the user's agent requests. Returns a function that removes the listener. */
    onRequests: (whose: { id: string; user: string }, listener: (change: RequestChange) => void) =>
      onRequests(parts, whose, listener),
    /**
     * Yields the recorded events of a session and, with `follow`, also the events that are added later.
     * `sessions.followEvents` would add a controller to each of many streams, which costs memory. It is not needed
     * here, because the caller's signal already ends a stream at once.
     */
    readEvents: (id: string, options: Parameters<typeof readEvents>[2]) => readEvents(parts, id, options),
    /** How the identity relates to the session with this id. */
    relation: async (identity: Identity, id: string) => {
      try {
        return relationTo(identity, await finder.find(validateSessionId(id, "id"), identity.user));
      } catch (error) {
        // A token for another session must not show that this one existed.
        const isSeen = identity.sessionId === undefined || identity.sessionId === id;
        if (error instanceof SessionExpired && isSeen) throw error;
        if (isFleetError(error, "FLEET_SESSION_NOT_FOUND")) return "foreign";
        throw error;
      }
    },
    busyServers: async (filter: ServerFilter) => {
      const [listed, asked] = await Promise.all([
        servers.list(filter),
        parts.hosts.everywhere(async (host) => await host.activity({})),
      ]);
      return listed.map((server) => withActivity(server, asked.answers));
    },
    poolState: async () => poolState(await store.registry.read()),
    hostViews: async () => (await fleet.hosts.overview()).hosts,
    /**
     * The samples after the given time, from each host that answers. Without a time, all samples that the hosts have.
     */
    samples: async (after: string | undefined) => {
      const { answers } = await parts.hosts.everywhere(async (host) => await host.samples({ after }));
      const ownName = own.name ?? ownHostName(parts.config, parts.stateRoot);
      return answers.map(({ host, answer }) => ({ host: host.name ?? ownName, samples: answer }));
    },
    /** The user of a one-time code. Does not use the code up. Null if the code is not valid. */
    ownerOf: async (code: string) => (await readCode(store, code))?.user ?? null,
    /** Exchanges a one-time code for a token. Null if the code is not valid, or does not belong to this user. */
    redeem: async (code: string, user: string) => {
      const issued = await redeemCode(store, code, user);
      const actor = { user, tokenId: tokenIdIn(code) ?? null, via: "http" } as const;
      if (issued !== null) await actingAs(actor, async () => await recordIssue(parts, issued));
      return issued;
    },
    usageReport: async (options: UsageOptions) => await listing("usage", async () => await usage.report(options)),
  };
}

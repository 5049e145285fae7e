import { isFleetError } from "../../base/errors.js";
import type { Address } from "../../config/rules.js";
import type { FrontDoor } from "../../door/door.js";
import type { HostCalls } from "../../door/entry/control.js";
import type { OpenDoorOptions, OpenHttpDoorOptions } from "../../hosts/options.js";
import { withActivity } from "../../hosts/overview.js";
import { readEvents } from "../../hosts/sessions/history.js";
import { onRequests } from "../../hosts/sessions/requests.js";
import type { HttpDoor } from "../../http/door.js";
import type { HttpContext } from "../../http/door-state.js";
import type { ApiFleet } from "../../http/fleet.js";
import { actingAs } from "../../identity/acting.js";
import { relationTo } from "../../identity/identity.js";
import { readCode, redeemCode, tokenIdIn } from "../../identity/tokens.js";
import { ownHostName } from "../../runtime/files/shared-storage.js";
import { poolState } from "../../servers/admission.js";
import { SessionExpired } from "../../sessions/problems.js";
import * as arg from "../arguments.js";
import type { FleetParts } from "../parts.js";
import type { EventGroup } from "./events.js";
import { Group } from "./group.js";
import type { HostGroup, ServerGroup } from "./servers.js";
import type { SessionGroup } from "./sessions.js";
import { recordIssue, type TokenGroup } from "./tokens.js";
import type { LimitGroup, UsageGroup } from "./usage.js";
import type { UserGroup } from "./users.js";

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
    const { openFrontDoor } = await import("../../door/door.js");
    const { answerCall } = await import("../../hosts/calls/rpc-table.js");
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
    const { openHttpDoor } = await import("../../http/door.js");
    const { apiFleet } = await import("./doors.js");
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
      const { Shares } = await import("../../door/state/shares.js");
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

/**
 * Runs calls with the same key (such as the user) one after the other. To list sessions, for example, the fleet reads
 * every record, which takes thousands of disk accesses. Many such calls of one user at once would delay the requests of
 * other users for seconds.
 */
class Turns {
  readonly #last = new Map<string, Promise<unknown>>();

  async run<T>(key: string, work: () => Promise<T>): Promise<T> {
    const before = this.#last.get(key) ?? Promise.resolve();
    const done = before.then(work);
    const over = done.then(
      () => undefined,
      () => undefined,
    );
    this.#last.set(key, over);
    try {
      return await done;
    } finally {
      if (this.#last.get(key) === over) this.#last.delete(key);
    }
  }
}

/** The library's functions, as the routes of the HTTP API call them. */
export function apiFleet(parts: FleetParts, groups: ApiGroups): ApiFleet {
  const { sessions, servers, hosts, tokens, limits, users, usage, events } = groups;
  const { config, store, finder, own } = parts;
  const lists = new Turns();
  const creations = new Turns();
  return {
    sessions: {
      create: async ({ key, ...options }) => {
        const { user, signal: _, gitHubToken: __, ...content } = options;
        const create = async (more: { sessionId?: string }) =>
          await sessions.leave(await sessions.create({ ...options, ...more }), { park: true });
        if (key === undefined) return await create({});
        const { createKeyed } = await import("../../sessions/use/keyed.js");
        const get = async (id: string) => await sessions.get(id, { user });
        const asked = { user, key, content, get, create: async (sessionId: string) => await create({ sessionId }) };
        // Calls with the same key run one after the other, because two calls in one process cannot create the same
        // session at once.
        return await creations.run(JSON.stringify([user, key]), async () => await createKeyed(store.keyedTurns, asked));
      },
      list: async (filter) => await lists.run(filter.user ?? "", async () => await sessions.list(filter)),
      get: async (id, options) => await sessions.get(id, options),
      update: async (id, options) => await sessions.update(id, options),
      delete: async (ids, options) => await sessions.delete(ids, options),
      turn: (id, prompt, options) =>
        sessions.turn(id, prompt, { ...options, interactive: options.interactive ?? config.session.approve === "ask" }),
      requests: async (id, options) => await sessions.requests(id, options),
      answer: async (id, requestId, options) => await sessions.answer(id, requestId, options),
      onRequests: (whose, listener) => onRequests(parts, whose, listener),
      abort: async (id, options) => await sessions.abort(id, options),
      // Call `readEvents` directly. `sessions.followEvents` would add a controller to each of many streams, which costs
      // memory. It is not needed here, because the caller's signal already ends a stream at once.
      followEvents: (id, options) => readEvents(parts, id, options),
      transcript: async (id, options) => await sessions.transcript(id, options),
      count: async (user) => await sessions.count(user),
      relation: async (identity, id) => {
        try {
          return relationTo(identity, await finder.find(id, identity.user));
        } catch (error) {
          // A token for another session must not show that this one existed.
          const isSeen = identity.sessionId === undefined || identity.sessionId === id;
          if (error instanceof SessionExpired && isSeen) throw error;
          if (isFleetError(error, "FLEET_SESSION_NOT_FOUND")) return "foreign";
          throw error;
        }
      },
    },
    servers: {
      list: async (filter) => {
        const [listed, asked] = await Promise.all([
          servers.list(filter),
          parts.hosts.everywhere(async (host) => await host.activity({})),
        ]);
        return listed.map((server) => withActivity(server, asked.answers));
      },
      stop: async (ids, request) => await servers.stop(ids, request),
      spawn: async (user, options) => await servers.spawn(user, options),
      restart: async (ids, request) => await servers.restart(ids, request),
    },
    events: {
      list: async (filter) => await events.list(filter),
      follow: (filter) => events.follow(filter),
    },
    pool: { state: async () => poolState(await store.registry.read()) },
    hosts: {
      list: async () => (await hosts.overview()).hosts,
      samples: async (after) => {
        const { answers } = await parts.hosts.everywhere(async (host) => await host.samples({ after }));
        const ownName = own.name ?? ownHostName(parts.config, parts.stateRoot);
        return answers.map(({ host, answer }) => ({ host: host.name ?? ownName, samples: answer }));
      },
    },
    limits: {
      get: async (user) => await limits.get(user),
      set: async (user, wanted) => await limits.set(user, wanted),
    },
    tokens: {
      list: async (filter) => await tokens.list(filter),
      issue: async (user, options) => await tokens.issue(user, options),
      revoke: async (which, options) => await tokens.revoke(which, options),
      ownerOf: async (code) => (await readCode(store, code))?.user ?? null,
      redeem: async (code, user) => {
        const issued = await redeemCode(store, code, user);
        const actor = { user, tokenId: tokenIdIn(code) ?? null, via: "http" } as const;
        if (issued !== null) await actingAs(actor, async () => await recordIssue(parts, issued));
        return issued;
      },
    },
    users: {
      list: async () => await users.list(),
      suspend: async (user, options) => await users.suspend(user, options),
      resume: async (user) => await users.resume(user),
      purge: async (user, options) => await users.purge(user, options),
    },
    usage: { report: async (options) => await lists.run("usage", async () => await usage.report(options)) },
  };
}

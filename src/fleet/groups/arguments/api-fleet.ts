import type { ApiFleet } from "../../../api/fleet.js";
import { isFleetError } from "../../../errors.js";
import { actingAs } from "../../../events/acting.js";
import { readCode, redeemCode } from "../../../identity/codes.js";
import { relationTo } from "../../../identity/policy.js";
import { tokenIdIn } from "../../../identity/tokens.js";
import { withActivity } from "../../../peers/overview.js";
import { readEvents } from "../../../peers/sessions/events.js";
import { onRequests } from "../../../peers/sessions/requests.js";
import { poolState } from "../../../pool/admission.js";
import { ownHostName } from "../../../runtime/files/host-note.js";
import { SessionExpired } from "../../../sessions/problems.js";
import type { FleetParts } from "../../parts.js";
import type { ApiGroups } from "../doors.js";
import { recordIssue } from "../tokens.js";

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
        const { createKeyed } = await import("../../../sessions/use/keyed/keyed-creation.js");
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

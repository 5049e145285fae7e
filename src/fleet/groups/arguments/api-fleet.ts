import type { ApiFleet } from "../../../api/fleet.js";
import { isFleetError } from "../../../errors.js";
import { relationTo } from "../../../identity/policy.js";
import { poolState } from "../../../pool/admission.js";
import type { FleetParts } from "../../parts.js";
import type { ApiGroups } from "../doors.js";

/** The library's functions, as the routes of the HTTP API call them. */
export function apiFleet({ store, finder }: FleetParts, { sessions, servers, hosts, tokens }: ApiGroups): ApiFleet {
  return {
    sessions: {
      create: async (options) => await sessions.leave(await sessions.create(options), { park: true }),
      list: async (filter) => await sessions.list(filter),
      get: async (id, options) => await sessions.get(id, options),
      update: async (id, options) => await sessions.update(id, options),
      delete: async (ids, options) => await sessions.delete(ids, options),
      use: (id, prompt, options) => sessions.use(id, prompt, options),
      abort: async (id, options) => await sessions.abort(id, options),
      followEvents: (id, options) => sessions.followEvents(id, options),
      transcript: async (id, options) => await sessions.transcript(id, options),
      count: async (user) => await sessions.count(user),
      relation: async (identity, id) => {
        try {
          return relationTo(identity, await finder.find(id, identity.user));
        } catch (error) {
          if (isFleetError(error, "FLEET_SESSION_NOT_FOUND")) return "foreign";
          throw error;
        }
      },
    },
    servers,
    pool: { state: async () => poolState(await store.registry.read()) },
    hosts: { list: async () => (await hosts.overview()).hosts },
    tokens,
  };
}

import { FIXED_LIMITS } from "../../config/limits.js";
import { type AnyRoute, route } from "../route.js";
import * as s from "./schemas.js";

export const CALLER_ROUTES: readonly AnyRoute[] = [
  route({
    method: "GET",
    path: "/v1/me",
    operation: "getCaller",
    action: "read",
    about: "none",
    isWork: false,
    tag: "Caller",
    summary: "Show who the caller is",
    description:
      "Shows the caller's user id, the scopes of the token, the limits of the user, and what is used of them.",
    params: null,
    query: null,
    body: null,
    answer: { status: 200, description: "The caller.", schema: s.caller },
    errors: [],
    limitMs: 10_000,
    handle: async ({ fleet, identity, limits }) => {
      const { user, scopes, groups, via, tokenId, sessionId = null, expiresAt } = identity;
      const view = await fleet.limits.get(user);
      const used = { ...view.used, sessions: view.used.sessions ?? 0, connections: limits.connections };
      return {
        body: {
          user,
          scopes: [...scopes],
          groups: [...groups],
          via,
          tokenId,
          sessionId,
          expiresAt,
          limits: { ...view.limits, ...FIXED_LIMITS.default },
          used,
        },
      };
    },
  }),
];

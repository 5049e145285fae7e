import * as v from "valibot";
import type { LimitView } from "../../accounts/limits.js";
import { validateUser } from "../../base/ids.js";
import { FIXED_LIMITS, USER_LIMITS, type UserLimit } from "../../base/user-limits.js";
import { type AnyRoute, route } from "../route.js";
import { described, given, object } from "./fields.js";
import * as s from "./schemas.js";

/** A suspension waits for the user's servers to stop. */
const SUSPEND_MS = 60_000;
/** A purge stops the user's servers, and erases files on all hosts. */
const PURGE_MS = 10 * 60_000;

const number = v.number();
const count = (what: string) => described(number, what);
const suspension = { since: s.time, reason: v.nullable(v.string()) };
const suspendBody = object({
  reason: v.optional(described(s.label, "Why, for other operators. Not blank.")),
});
const suspended = v.object({
  user: v.string(),
  ...suspension,
  known: described(v.boolean(), "Whether the user has a session, a server or a token."),
  stopped: described(s.stopped.entries.stopped, "The servers of the user that were stopped."),
});
const user = v.object({
  user: v.string(),
  sessions: count("The sessions that the user owns."),
  servers: count("The servers that belong to the user, running or not, on all hosts."),
  tokens: count("The tokens that were issued and not revoked."),
  suspended: described(v.nullable(v.object(suspension)), "Null unless the user is suspended."),
});
const users = v.object({ users: v.array(user) });
const receipt = v.object({
  user: v.string(),
  sessions: number,
  servers: number,
  tokens: number,
  bytes: count("The bytes of the files that were erased."),
  remains: described(
    v.array(v.object({ host: v.nullable(v.string()), what: v.string(), why: v.string() })),
    "The parts that could not be erased, and the reasons. Empty if the erasure is complete.",
  ),
  dryRun: v.boolean(),
});

export const USER_ROUTES: readonly AnyRoute[] = [
  route("Users", "GET /v1/users", {
    operation: "listUsers",
    action: "manage",
    summary: "List the users",
    description: "Lists the users who have a session, a server or a token, or are suspended, by name.",
    answer: { description: "The users.", schema: users },
    handle: async ({ fleet }) => ({ users: await fleet.users.list() }),
  }),
  route("Users", "POST /v1/users/{id}/suspend", {
    operation: "suspendUser",
    action: "manage",
    summary: "Suspend a user",
    description:
      "Refuses the user at every entry point, with all credentials (403, `FLEET_USER_SUSPENDED`). The user's turns and connections end within seconds, on all hosts, and the user's own servers stop. Data stays. The fleet need not know the user.",
    body: suspendBody,
    isBodyOptional: true,
    answer: { description: "The user is suspended.", schema: suspended },
    limitMs: SUSPEND_MS,
    handle: async ({ fleet, params: { id }, body }) => await fleet.users.suspend(id, given(body)),
  }),
  route("Users", "POST /v1/users/{id}/resume", {
    operation: "resumeUser",
    action: "manage",
    summary: "End the suspension of a user",
    description: "The user's credentials are valid again.",
    answer: { description: "The user is no longer suspended.", schema: v.object({ user: v.string() }) },
    handle: async ({ fleet, params: { id } }) => await fleet.users.resume(id),
  }),
  route("Users", "DELETE /v1/users/{id}", {
    operation: "purgeUser",
    action: "manage",
    summary: "Erase all data of a user",
    description:
      "Stops the user's servers at once and erases sessions, histories, homes and tokens on all hosts. In usage and events, a pseudonym replaces the name. If it is interrupted, the same request finishes it.",
    answer: { description: "The receipt, with everything that remains.", schema: receipt },
    limitMs: PURGE_MS,
    handle: async ({ fleet, params: { id }, lasting }) =>
      await fleet.users.purge(validateUser(id), { signal: lasting }),
  }),
];

const ALLOWED = "a whole number from 1, or null for no limit";

const limit = v.optional(
  v.nullable(
    v.pipe(v.number(ALLOWED), v.safeInteger(ALLOWED), v.minValue(1, ALLOWED), v.description("Null: unlimited.")),
  ),
);

/** An object that has `value` for each limit of a user. */
function each<T>(value: T): Record<UserLimit, T> {
  return Object.fromEntries(USER_LIMITS.map((name) => [name, value])) as Record<UserLimit, T>;
}

const numberOrNull = v.nullable(v.number());

const userLimits = v.object({
  user: v.string(),
  groups: v.pipe(
    v.array(v.string()),
    v.readonly(),
    v.description("The groups of the user that `limits.groups` names, as of the last sign-on that named groups."),
  ),
  limits: described(v.object(each(numberOrNull)), "The limits in force. Null: unlimited."),
  used: described(v.object(each(numberOrNull)), "The used part of each limit. Null: nobody counts it."),
  sources: described(
    v.object(each(v.string())),
    "Where each limit comes from: `default`, `group:` and the name of a group, or `user`.",
  ),
});

export const LIMIT_ROUTES: readonly AnyRoute[] = [
  route("Users", "GET /v1/users/{id}/limits", {
    operation: "getUserLimits",
    action: "manage",
    summary: "Show the limits of a user",
    description: "Also shows what is used of them, and where each comes from.",
    answer: { description: "The limits.", schema: userLimits },
    handle: async ({ fleet, params: { id } }) => await shown(fleet.limits.get(id)),
  }),
  route("Users", "PUT /v1/users/{id}/limits", {
    operation: "setUserLimits",
    action: "manage",
    summary: "Replace the limits of a user",
    description:
      "A limit that is left out is again that of the user's groups, or that of everybody. An empty object removes all limits of this user alone. All hosts follow within a second.",
    body: object(each(limit)),
    answer: { description: "The limits.", schema: userLimits },
    handle: async ({ fleet, params: { id }, body }) => {
      const wanted = { ...each("default" as const), ...given(body) };
      return await shown(fleet.limits.set(id, wanted));
    },
  }),
];

async function shown(view: Promise<LimitView>): Promise<v.InferOutput<typeof userLimits>> {
  return v.parse(userLimits, await view);
}

export const CALLER_ROUTES: readonly AnyRoute[] = [
  route("Caller", "GET /v1/me", {
    operation: "getCaller",
    action: "read",
    summary: "Show who the caller is",
    description:
      "Shows the caller's user id, the scopes of the token, the limits of the user, and what is used of them.",
    answer: { description: "The caller.", schema: s.caller },
    limitMs: 10_000,
    handle: async ({ fleet, identity, limits }) => {
      const { user, scopes, groups, via, tokenId, sessionId = null, expiresAt } = identity;
      const view = await fleet.limits.get(user);
      const used = { ...view.used, sessions: view.used.sessions ?? 0, connections: limits.connections };
      return {
        user,
        scopes: [...scopes],
        groups: [...groups],
        via,
        tokenId,
        sessionId,
        expiresAt,
        limits: { ...view.limits, ...FIXED_LIMITS.default },
        used,
      };
    },
  }),
];

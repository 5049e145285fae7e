import * as v from "valibot";
import { validateUser } from "../../../model/ids.js";
import { type AnyRoute, route } from "../../route.js";
import { object } from "../fields.js";
import { given } from "../given.js";
import * as s from "../schemas.js";

const LOOK_MS = 30_000;
/** A suspension waits for the user's servers to stop. */
const SUSPEND_MS = 60_000;
/** A purge stops the user's servers, and erases files on all hosts. */
const PURGE_MS = 10 * 60_000;

const number = v.number();
const count = (what: string) => v.pipe(number, v.description(what));
const suspension = { since: s.time, reason: v.nullable(v.string()) };
const suspendBody = object({
  reason: v.optional(v.pipe(s.label, v.description("Why, for other operators. Not blank."))),
});
const suspended = v.object({
  user: v.string(),
  ...suspension,
  known: v.pipe(v.boolean(), v.description("Whether the user has a session, a server or a token.")),
  stopped: v.pipe(s.stopped.entries.stopped, v.description("The servers of the user that were stopped.")),
});
const user = v.object({
  user: v.string(),
  sessions: count("The sessions that the user owns."),
  servers: count("The servers that belong to the user, running or not, on all hosts."),
  tokens: count("The tokens that were issued and not revoked."),
  suspended: v.pipe(v.nullable(v.object(suspension)), v.description("Null unless the user is suspended.")),
});
const users = v.object({ users: v.array(user) });
const receipt = v.object({
  user: v.string(),
  sessions: number,
  servers: number,
  tokens: number,
  bytes: count("The bytes of the files that were erased."),
  remains: v.pipe(
    v.array(v.object({ host: v.nullable(v.string()), what: v.string(), why: v.string() })),
    v.description("The parts that could not be erased, and the reasons. Empty if the erasure is complete."),
  ),
  dryRun: v.boolean(),
});

export const USER_ROUTES: readonly AnyRoute[] = [
  route({
    method: "GET",
    path: "/v1/users",
    operation: "listUsers",
    action: "manage",
    about: "none",
    isWork: false,
    tag: "Users",
    summary: "List the users",
    description: "Lists the users who have a session, a server or a token, or are suspended, by name.",
    params: null,
    query: null,
    body: null,
    answer: { status: 200, description: "The users.", schema: users },
    errors: [],
    limitMs: LOOK_MS,
    handle: async ({ fleet }) => ({ body: { users: await fleet.users.list() } }),
  }),
  route({
    method: "POST",
    path: "/v1/users/{id}/suspend",
    operation: "suspendUser",
    action: "manage",
    about: "none",
    isWork: false,
    tag: "Users",
    summary: "Suspend a user",
    description:
      "Refuses the user at every entry point, with all credentials (403, `FLEET_USER_SUSPENDED`). The user's turns and connections end within seconds, on all hosts, and the user's own servers stop. Data stays. The fleet need not know the user.",
    params: s.path,
    query: null,
    body: suspendBody,
    isBodyOptional: true,
    answer: { status: 200, description: "The user is suspended.", schema: suspended },
    errors: [],
    limitMs: SUSPEND_MS,
    handle: async ({ fleet, params: { id }, body }) => ({ body: await fleet.users.suspend(id, given(body)) }),
  }),
  route({
    method: "POST",
    path: "/v1/users/{id}/resume",
    operation: "resumeUser",
    action: "manage",
    about: "none",
    isWork: false,
    tag: "Users",
    summary: "End the suspension of a user",
    description: "The user's credentials are valid again.",
    params: s.path,
    query: null,
    body: null,
    answer: { status: 200, description: "The user is no longer suspended.", schema: v.object({ user: v.string() }) },
    errors: [404],
    limitMs: LOOK_MS,
    handle: async ({ fleet, params: { id } }) => ({ body: await fleet.users.resume(id) }),
  }),
  route({
    method: "DELETE",
    path: "/v1/users/{id}",
    operation: "purgeUser",
    action: "manage",
    about: "none",
    isWork: false,
    tag: "Users",
    summary: "Erase all data of a user",
    description:
      "Stops the user's servers at once and erases sessions, histories, homes and tokens on all hosts. In usage and events, a pseudonym replaces the name. If it is interrupted, the same request finishes it.",
    params: s.path,
    query: null,
    body: null,
    answer: { status: 200, description: "The receipt, with everything that remains.", schema: receipt },
    errors: [404],
    limitMs: PURGE_MS,
    handle: async ({ fleet, params: { id }, lasting }) => ({
      body: await fleet.users.purge(validateUser(id), { signal: lasting }),
    }),
  }),
];

import * as v from "valibot";
import { USER_LIMITS, type UserLimit } from "../../../config/limits.js";
import type { LimitView } from "../../../usage/limits/limits.js";
import { type AnyRoute, route } from "../../route.js";
import { object } from "../fields.js";
import { given } from "../given.js";
import { path } from "../schemas.js";

const LOOK_MS = 30_000;
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
  limits: v.pipe(v.object(each(numberOrNull)), v.description("The limits in force. Null: unlimited.")),
  used: v.pipe(v.object(each(numberOrNull)), v.description("The used part of each limit. Null: nobody counts it.")),
  sources: v.pipe(
    v.object(each(v.string())),
    v.description("Where each limit comes from: `default`, `group:` and the name of a group, or `user`."),
  ),
});

export const LIMIT_ROUTES: readonly AnyRoute[] = [
  route({
    method: "GET",
    path: "/v1/users/{id}/limits",
    operation: "getUserLimits",
    action: "manage",
    about: "none",
    isWork: false,
    tag: "Users",
    summary: "Show the limits of a user",
    description: "Also shows what is used of them, and where each comes from.",
    params: path,
    query: null,
    body: null,
    answer: { status: 200, description: "The limits.", schema: userLimits },
    errors: [],
    limitMs: LOOK_MS,
    handle: async ({ fleet, params: { id } }) => ({ body: await shown(fleet.limits.get(id)) }),
  }),
  route({
    method: "PUT",
    path: "/v1/users/{id}/limits",
    operation: "setUserLimits",
    action: "manage",
    about: "none",
    isWork: false,
    tag: "Users",
    summary: "Replace the limits of a user",
    description:
      "A limit that is left out is again that of the user's groups, or that of everybody. An empty object removes all limits of this user alone. All hosts follow within a second.",
    params: path,
    query: null,
    body: object(each(limit)),
    answer: { status: 200, description: "The limits.", schema: userLimits },
    errors: [],
    limitMs: LOOK_MS,
    handle: async ({ fleet, params: { id }, body }) => {
      const wanted = { ...each("default" as const), ...given(body) };
      return { body: await shown(fleet.limits.set(id, wanted)) };
    },
  }),
];

async function shown(view: Promise<LimitView>): Promise<v.InferOutput<typeof userLimits>> {
  return v.parse(userLimits, await view);
}

import type { AnyRoute } from "../route.js";
import { ADMIN_ROUTES } from "./admin.js";
import { CALLER_ROUTES } from "./caller.js";
import { EVENT_ROUTES } from "./events/events.js";
import { REQUEST_ROUTES } from "./requests/requests.js";
import { SESSION_ROUTES } from "./sessions.js";
import { TURN_ROUTES } from "./turns.js";
import { USAGE_ROUTES } from "./usage/usage.js";
import { LIMIT_ROUTES } from "./users/limits.js";
import { USER_ROUTES } from "./users/users.js";

/** Every route of the HTTP API. The validation, the policy and `/openapi.json` come from this table. */
export const ROUTES: readonly AnyRoute[] = [
  ...CALLER_ROUTES,
  ...SESSION_ROUTES,
  ...TURN_ROUTES,
  ...REQUEST_ROUTES,
  ...EVENT_ROUTES,
  ...ADMIN_ROUTES,
  ...USAGE_ROUTES,
  ...LIMIT_ROUTES,
  ...USER_ROUTES,
];

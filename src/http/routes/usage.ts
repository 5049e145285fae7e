import * as v from "valibot";
import { USAGE_BY } from "../../base/usage.js";
import { oneOf } from "../../base/values/text.js";
import { type AnyRoute, route } from "../route.js";
import { described, given, object, text } from "./fields.js";

const query = object({
  by: described(v.optional(v.picklist(USAGE_BY, oneOf(USAGE_BY))), "The meaning of a row. Default: `user`."),
  since: described(
    v.optional(text),
    "The beginning: how long ago, such as `24h`, or a time in ISO 8601. Default: 24 hours ago.",
  ),
  user: described(v.optional(text), "Only the usage of this user. Needs scope `admin`, unless it is the caller."),
});

const numberOrNull = v.nullable(v.number());
const counts = {
  turns: v.number(),
  requests: v.number(),
  inputTokens: numberOrNull,
  outputTokens: numberOrNull,
  cacheReadTokens: numberOrNull,
  credits: numberOrNull,
  cost: described(numberOrNull, "By `provider.prices`. Null if a model has no price."),
};

const report = v.object({
  from: v.string(),
  to: v.string(),
  by: v.picklist(USAGE_BY),
  usage: described(
    v.array(v.object({ key: v.nullable(v.string()), ...counts })),
    "A row for each user, session, model, token id or day. The model gateway estimates numbers that the model service does not report. A number is null if neither reported nor estimated.",
  ),
  total: v.object(counts),
});

export const USAGE_ROUTES: readonly AnyRoute[] = [
  route("Caller", "GET /v1/usage", {
    operation: "getUsage",
    actionOf: ({ user }, identity) => (user === undefined || user === identity.user ? "readAll" : "manage"),
    action: "readAll",
    summary: "Show what was used: turns, model requests and tokens",
    description: "Shows the caller's own usage. With scope `admin`, shows that of all users.",
    query,
    answer: { description: "The usage.", schema: report },
    handle: async ({ fleet, identity, query: { user, ...rest } }) => {
      const own = identity.scopes.includes("admin") ? undefined : identity.user;
      return await fleet.usageReport(given({ ...rest, user: user ?? own }));
    },
  }),
];

import * as v from "valibot";
import * as rules from "../rules.js";

/** The audit log: what people and the fleet do. */
export const events = v.pipe(
  v.strictObject({
    retention: v.optional(rules.age(), "90d"),
  }),
  v.transform(({ retention }) => ({ retentionMs: retention })),
);

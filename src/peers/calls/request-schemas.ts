import * as v from "valibot";
import { isObject } from "../../config/values/json.js";
import type { AgentRequest, AskedPermission, RequestAnswer, RequestChange } from "../../sessions/requests/request.js";
import { flag, object, type Schema, word } from "./schemas.js";

/* The schemas of the agent's permissions and questions in the calls between hosts. */

const string = v.string("a text");

export const requestAnswer: Schema<RequestAnswer> = object({
  decision: v.exactOptional(v.picklist(["approve", "deny"], "approve or deny")),
  reason: v.exactOptional(v.string("a text")),
  answer: v.exactOptional(v.string("a text")),
});

const permission = v.custom<AskedPermission>(
  (value) => isObject(value) && typeof value.kind === "string",
  "a permission",
);

export const agentRequest: Schema<AgentRequest> = object({
  id: string,
  session: string,
  user: string,
  kind: word<AgentRequest["kind"]>(),
  openedAt: string,
  expiresAt: string,
  permission: v.nullish(permission, null),
  question: v.nullish(
    object({ question: string, choices: v.nullish(v.array(string, "a list"), null), freeform: flag }),
    null,
  ),
  outcome: v.nullish(word<NonNullable<AgentRequest["outcome"]>>(), null),
});

export const requestChange: Schema<RequestChange> = object({
  type: word<RequestChange["type"]>(),
  request: agentRequest,
});

import * as v from "valibot";
import { REQUEST_KINDS, REQUEST_OUTCOMES } from "../../sessions/requests.js";
import { type AnyRoute, route } from "../route.js";
import { described, given, object } from "./fields.js";
import { time } from "./schemas.js";

const LONGEST_ANSWER = 16_000;

const ALLOWED_TEXT = `a text of at most ${LONGEST_ANSWER} characters that is not blank`;
const answerText = v.pipe(
  v.string(ALLOWED_TEXT),
  v.maxLength(LONGEST_ANSWER, ALLOWED_TEXT),
  v.check((text) => text.trim() !== "", ALLOWED_TEXT),
);

const requestAnswer = object({
  decision: v.optional(
    described(v.picklist(["approve", "deny"], "approve or deny"), "The decision about a permission."),
  ),
  reason: v.optional(described(answerText, "For a denial: the text that the model reads.")),
  answer: v.optional(described(answerText, "The answer to a question: one of its choices, or another text.")),
});

export const request = v.object({
  id: v.string(),
  session: v.string(),
  user: described(v.string(), "The user whose turn asks, and who alone may answer."),
  kind: v.picklist(REQUEST_KINDS),
  openedAt: time,
  expiresAt: described(v.string(), "When the request ends without an answer. ISO 8601, in UTC."),
  permission: described(
    v.nullable(v.objectWithRest({ kind: v.string() }, v.unknown())),
    "The permission, with the fields of the runtime, such as `fullCommandText` of the kind `shell`.",
  ),
  question: v.nullable(
    v.object({
      question: v.string(),
      choices: v.nullable(v.array(v.string())),
      freeform: described(v.boolean(), "Whether an answer may differ from the choices."),
    }),
  ),
  outcome: described(v.nullable(v.picklist(REQUEST_OUTCOMES)), "How the request ended. Null while it waits."),
});

const requests = v.object({ requests: v.array(request) });

export const REQUEST_ROUTES: readonly AnyRoute[] = [
  route("Requests", "GET /v1/sessions/{id}/requests", {
    operation: "listRequests",
    action: "read",
    summary: "List the permissions and questions that wait for an answer",
    description:
      "Lists what the agent asks in the caller's own turns at the HTTP API, at any host, the oldest first. The turns of other " +
      "members are not included, nor is anything that a client of the front door answers itself.",
    answer: {
      description: "The requests that wait.",
      schema: requests,
    },
    handle: async ({ fleet, identity: { user }, params: { id } }) => ({
      requests: await fleet.sessions.requests(id, { user }),
    }),
  }),
  route("Requests", "POST /v1/sessions/{id}/requests/{requestId}", {
    operation: "answerRequest",
    action: "use",
    summary: "Answer a permission or a question",
    description:
      "A permission takes `decision`, and a question takes `answer`. Only the user whose turn asks may answer, at any host. The " +
      "first answer counts, and later ones are refused with 409.",
    body: requestAnswer,
    answer: { description: "The request, with its outcome.", schema: request },
    errors: [409],
    handle: async ({ fleet, identity: { user }, params: { id, requestId }, body }) =>
      await fleet.sessions.answer(id, requestId, { user, ...given(body) }),
  }),
];

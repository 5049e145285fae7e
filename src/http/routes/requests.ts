import { type AnyRoute, route } from "../route.js";
import { given } from "./fields.js";
import * as r from "./request-schemas.js";

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
      schema: r.requests,
    },
    handle: async ({ fleet, identity: { user }, params: { id } }) => ({
      body: { requests: await fleet.sessions.requests(id, { user }) },
    }),
  }),
  route("Requests", "POST /v1/sessions/{id}/requests/{requestId}", {
    operation: "answerRequest",
    action: "use",
    summary: "Answer a permission or a question",
    description:
      "A permission takes `decision`, and a question takes `answer`. Only the user whose turn asks may answer, at any host. The " +
      "first answer counts, and later ones are refused with 409.",
    body: r.requestAnswer,
    answer: { description: "The request, with its outcome.", schema: r.request },
    errors: [409],
    handle: async ({ fleet, identity: { user }, params: { id, requestId }, body }) => ({
      body: await fleet.sessions.answer(id, requestId, { user, ...given(body) }),
    }),
  }),
];

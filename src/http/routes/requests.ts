import { type AnyRoute, route } from "../route.js";
import { given } from "./fields.js";
import * as r from "./request-schemas.js";
import * as s from "./schemas.js";

export const REQUEST_ROUTES: readonly AnyRoute[] = [
  route({
    method: "GET",
    path: "/v1/sessions/{id}/requests",
    operation: "listRequests",
    action: "read",
    about: "session",
    tag: "Requests",
    summary: "List the permissions and questions that wait for an answer",
    description:
      "Lists what the agent asks in the caller's own turns at the HTTP API, at any host, the oldest first. The turns of other " +
      "members are not included, nor is anything that a client of the front door answers itself.",
    params: s.path,
    answer: {
      status: 200,
      description: "The requests that wait.",
      schema: r.requests,
    },
    errors: [404],
    handle: async ({ fleet, identity: { user }, params: { id } }) => ({
      body: { requests: await fleet.sessions.requests(id, { user }) },
    }),
  }),
  route({
    method: "POST",
    path: "/v1/sessions/{id}/requests/{requestId}",
    operation: "answerRequest",
    action: "use",
    about: "session",
    tag: "Requests",
    summary: "Answer a permission or a question",
    description:
      "A permission takes `decision`, and a question takes `answer`. Only the user whose turn asks may answer, at any host. The " +
      "first answer counts, and later ones are refused with 409.",
    params: r.requestPath,
    body: r.requestAnswer,
    answer: { status: 200, description: "The request, with its outcome.", schema: r.request },
    errors: [404, 409],
    handle: async ({ fleet, identity: { user }, params: { id, requestId }, body }) => ({
      body: await fleet.sessions.answer(id, requestId, { user, ...given(body) }),
    }),
  }),
];

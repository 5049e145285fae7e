import { sha256 } from "../../base/values/text.js";
import { sessionChanged } from "../../sessions/problems.js";
import type { SessionView } from "../../sessions/view.js";
import { type AnyRoute, Reply, route } from "../route.js";
import { given, pageOf } from "./fields.js";
import * as s from "./schemas.js";

/** Creating a session may start a server, which may take half a minute. */
const CREATE_MS = 60_000;

export const SESSION_ROUTES: readonly AnyRoute[] = [
  route("Sessions", "POST /v1/sessions", {
    operation: "createSession",
    action: "useAll",
    isWork: true,
    summary: "Create a session",
    description:
      "The session belongs to the caller. Starts the caller's server if it does not run. The caller's requests with the same " +
      "`Idempotency-Key` create one session, and all get it as it is now.",
    body: s.newSession,
    isBodyOptional: true,
    isRepeatable: true,
    answer: { status: 201, description: "The new session.", schema: s.oneSession, headers: ["Location"] },
    errors: [404, 409, 502, 504],
    limitMs: CREATE_MS,
    handle: async ({ fleet, identity, body: { id, tools, ...wanted }, gitHubToken, signal, idempotencyKey }) => {
      const options = {
        user: identity.user,
        ...given({ sessionId: id, availableTools: tools, ...wanted, key: idempotencyKey }),
        signal,
      };
      const session = await fleet.createSession(gitHubToken === null ? options : { ...options, gitHubToken });
      return new Reply({ headers: { Location: `/v1/sessions/${encodeURIComponent(session.id)}` }, body: { session } });
    },
  }),
  route("Sessions", "GET /v1/sessions", {
    operation: "listSessions",
    action: "readAll",
    summary: "List sessions",
    description:
      "Lists the sessions that the caller owns or is a member of, the newest first. With the scope `admin`, also those of other users, without their titles and conversations.",
    actionOf: ({ user, all }, identity) =>
      all === undefined && (user ?? identity.user) === identity.user ? "readAll" : "manage",
    query: s.sessionFilter,
    answer: { description: "One page of sessions.", schema: s.sessionPage },
    handle: async ({ fleet, identity, query: { limit, cursor, all, user: given, state, purpose } }) => {
      const user = given ?? (all === undefined ? identity.user : undefined);
      const { page, next } = pageOf(await fleet.listSessions({ user, state, purpose }), { limit, cursor });
      // The title is a part of the conversation, which only the owner and the members may read.
      const sessions = page.map((session) =>
        [session.owner, ...session.members].includes(identity.user) ? session : { ...session, title: null },
      );
      return { sessions, next };
    },
  }),
  route("Sessions", "GET /v1/sessions/{id}", {
    operation: "getSession",
    action: "read",
    summary: "Show one session",
    description: "With the `ETag` of an earlier answer as `If-None-Match`, the answer is 304 if nothing has changed.",
    answer: { description: "The session.", schema: s.oneSession, headers: ["ETag"] },
    handle: async ({ fleet, identity: { user }, params: { id }, header }) => {
      const session = await fleet.sessions.get(id, { user });
      const etag = etagOf(session);
      return isKnown(etag, header("If-None-Match"))
        ? new Reply({ status: 304, headers: { ETag: etag } })
        : new Reply({ headers: { ETag: etag }, body: { session } });
    },
  }),
  route("Sessions", "PATCH /v1/sessions/{id}", {
    operation: "updateSession",
    action: "useAll",
    summary: "Change the title, the members, the TTL or the purpose of a session",
    description:
      "Only the owner may do this. A field that is left out stays as it is. Null sets a field to its default. With the `ETag` of " +
      "an earlier answer as `If-Match`, changes nothing if the session has changed since.",
    takesIfMatch: true,
    body: s.changedSession,
    answer: { description: "The session after the change.", schema: s.oneSession, headers: ["ETag"] },
    errors: [412],
    handle: async ({ fleet, identity: { user }, params: { id }, body, header }) => {
      const expected = await expectedBy(header("If-Match"), async () => await fleet.sessions.get(id, { user }));
      const session = await fleet.sessions.update(id, { user, ...given({ expected }), ...body });
      return new Reply({ headers: { ETag: etagOf(session) }, body: { session } });
    },
  }),
  route("Sessions", "DELETE /v1/sessions/{id}", {
    operation: "deleteSession",
    action: "useAll",
    summary: "Delete a session with its history",
    description:
      "Only the owner may do this, and not during a turn. With the `ETag` of an earlier answer as `If-Match`, deletes nothing if " +
      "the session has changed since.",
    takesIfMatch: true,
    answer: { status: 204, description: "The session is deleted.", schema: null },
    errors: [409, 412, 502, 504],
    handle: async ({ fleet, identity: { user }, params: { id }, header }) => {
      await expectedBy(header("If-Match"), async () => await fleet.sessions.get(id, { user }));
      await fleet.sessions.delete([id], { user });
    },
  }),
];

/**
 * The session, if it matches the header `If-Match`; undefined without the header. @throws FleetError
 * `FLEET_SESSION_CHANGED`.
 */
async function expectedBy(
  ifMatch: string | undefined,
  get: () => Promise<SessionView>,
): Promise<SessionView | undefined> {
  if (ifMatch === undefined) return undefined;
  const session = await get();
  const known = ifMatch.split(",").map((each) => each.trim());
  if (!known.includes("*") && !known.includes(etagOf(session))) throw sessionChanged(session.id);
  return session;
}

/** The ETag of a session. It changes whenever anything in the answer changes, such as the size or the last use. */
function etagOf(session: SessionView): string {
  const { lease, ...rest } = session;
  // Leave out the remaining time of the lease, because it is different in each answer.
  const { remainingMs: _, ...held } = lease ?? { remainingMs: 0 };
  return `"${sha256(JSON.stringify([rest, held])).slice(0, 32)}"`;
}

function isKnown(etag: string, ifNoneMatch: string | undefined): boolean {
  const known = (ifNoneMatch ?? "").split(",").map((each) => each.trim().replace(/^W\//, ""));
  return known.includes(etag) || known.includes("*");
}

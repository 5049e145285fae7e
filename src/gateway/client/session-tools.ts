import type { SessionRecord } from "../../model/session.js";
import { checkMember, toolsIn } from "../policy/members.js";
import { decide } from "../policy/reach.js";
import type { ClientState } from "../state/client-state.js";
import { isAnswer } from "../state/door/server-questions.js";
import type { ServerLink } from "../state/links.js";
import type { ClientRequest, Params } from "../wire/client-message.js";
import { methodDenied } from "../wire/refusals.js";

/** Refuses a member's request that only the owner may make, or that would replace another user's tool. */
export function checkTools(state: ClientState, { method, params }: ClientRequest, record: SessionRecord): void {
  const { user, door } = state;
  if (record.owner === user) return;
  checkMember(method, params);
  if (method !== "session.resume" && method !== "session.tools.set") return;
  const isOthers = (tool: string) => door.bringers(record.id, tool, state).some((other) => other !== user);
  const taken = toolsIn(params).find(({ name }) => isOthers(String(name)));
  if (taken === undefined) return;
  const tool = JSON.stringify(taken.name);
  throw methodDenied(method, `another user's client already provides the tool ${tool} in this session`);
}

/**
 * Refuses a client's answer to a server's question if the session did not ask the question, or if the question is about
 * another client's tool. The runtime would accept an answer from every client that knows the question's id.
 */
export function checkAnswer(
  state: ClientState,
  { own }: ServerLink,
  { method, params }: ClientRequest,
  record: SessionRecord,
): void {
  if (!isAnswer(method)) return;
  const asked = state.door.questions.get(record.id, params.requestId);
  const isCollaborative = record.kind === "collaborative";
  if (asked === undefined && (isCollaborative || !own))
    throw methodDenied(method, "this session has not asked for anything under that requestId");
  if (isCollaborative && asked?.tool !== undefined && !answersFor(state, asked.tool, record))
    throw methodDenied(method, "only the client that provides a tool may answer its calls");
}

/**
 * The parameters that the server gets for this client's answer to a permission request; null if the client may not
 * answer it. {@link decide} has the rules. Reports an answer that `decide` changes.
 */
export function permitted(
  state: ClientState,
  { own }: ServerLink,
  { method, params }: ClientRequest,
  record: SessionRecord,
): Params | null {
  const { door, report } = state;
  const asked = door.questions.get(record.id, params.requestId);
  const isCollaborative = record.kind === "collaborative";
  const isOwnTool =
    asked?.tool !== undefined &&
    (isCollaborative ? answersFor(state, asked.tool, record) : state.brings(record.id, asked.tool));
  const decided = decide(params, { asked, isOwnTool, isCollaborative }, { own, config: door.config });
  if (decided !== params) {
    const detail = "an approval that this user may not give";
    report.event({ event: "denied", method, sessionId: String(params.sessionId), detail });
  }
  return decided;
}

/**
 * Whether this client may answer for a tool of a collaborative session. It may if it brought the tool. But if a client
 * of the owner brought the same tool, only the owner's clients may. If no client has the tool now, the owner's clients
 * may answer, because the client that brought the tool may have reconnected.
 */
function answersFor(state: ClientState, tool: string, { id, owner }: SessionRecord): boolean {
  const { user, door } = state;
  const others = door.bringers(id, tool, state);
  return state.brings(id, tool) ? user === owner || !others.includes(owner) : user === owner && others.length === 0;
}

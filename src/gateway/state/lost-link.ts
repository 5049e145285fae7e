import { SERVER_ENDED } from "../wire/refusals.js";
import type { ClientState } from "./client-state.js";
import type { Link } from "./links.js";
import type { Prompt } from "./turn.js";
import type { TurnEnds } from "./turn-ends.js";

/**
 * Call this when a link has ended. Refuses the requests that wait for its answers, sends the client the ends of the
 * turns that ran there, and records the sessions that the door has to open again.
 */
export function loseLink(state: ClientState, link: Link): void {
  const { door, links, attachments, turns, requests, report } = state;
  links.forget(link);
  if (state.gone.aborted) return;
  report.event({ event: link.kind === "peer" ? "host-lost" : "server-lost", detail: link.id });
  // Call `turnsThatGoOn` before `drop`, because it marks the prompts in doubt. `drop` refuses all other unanswered
  // prompts.
  const goOn = turnsThatGoOn(state, link);
  requests.drop(link);
  if (state.boundTo === link) {
    state.socket.end();
    return;
  }
  let lost = false;
  for (const [id, attachment] of attachments) {
    if (attachment.linkId !== link.id || !attachment.attached) continue;
    lost = true;
    attachment.attached = false;
    attachment.heard = false;
    if (goOn.has(id)) {
      attachment.inTurn = false;
      continue;
    }
    state.cut(attachment, SERVER_ENDED);
    turns.get(id)?.interrupted("lost");
  }
  if (lost && link.kind === "server") door.lostServers.await(link.server, state);
  if (lost && link.kind === "peer") door.lostHosts.await(link.host, state);
}

/**
 * Returns the ids of the sessions whose turns continue after the end of the link. These are the turns without a prompt
 * on this link, and the turns with a prompt that the server might not have begun. Such prompts are in doubt from now
 * on: the door may send them again.
 */
function turnsThatGoOn({ turns, ends }: ClientState, link: Link): ReadonlySet<string> {
  const goOn = new Set<string>();
  for (const [id, turn] of turns) {
    if (!turn.active) continue;
    const sent = [...turn.sent].filter((prompt) => prompt.sent?.link === link);
    const doubtful = sent.filter((prompt) => !isAnsweredAndBegun(ends, id, prompt));
    if (sent.length > 0 && doubtful.length === 0) continue;
    goOn.add(id);
    if (doubtful.length < sent.length) ends.cut(id, SERVER_ENDED);
    if (doubtful.length > 0 && link.kind === "server") turn.doubt(doubtful, link);
  }
  return goOn;
}

/** Whether the server has answered and begun the prompt, so that the client needs only the end of its turn. */
function isAnsweredAndBegun(ends: TurnEnds, sessionId: string, { sent }: Prompt): boolean {
  const messageIds = sent?.messageIds ?? null;
  return messageIds !== null && !messageIds.some((id) => ends.waitsFor(sessionId, id));
}

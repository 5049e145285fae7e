import { randomUUID } from "node:crypto";
import { promptsSince } from "../../runtime/history/session-events.js";
import { namesPrompts } from "../../runtime/launch/versions.js";
import { hasEnded } from "../../servers/server.js";
import type { ClientState } from "../state/client-state.js";
import { failure } from "../state/report.js";
import type { Doubt, Prompt, Turn } from "../state/turn.js";
import { SERVER_ENDED, serverLost } from "../wire/refusals.js";

/**
 * Decides what happens to prompts whose server has ended. The door does not send a prompt again if it did so before, or
 * if the turn is over. Never rejects.
 *
 * | had the server begun the prompt?            | the client has an answer | the client has no answer          |
 * | ------------------------------------------- | ------------------------ | --------------------------------- |
 * | yes: its turn is cut                        | gets the turn's end      | gets the message id, and that end |
 * | no: it waits to be sent again, once         | gets no other answer     | gets the next server's answer     |
 * | not known, or no, but it is not sent again  | gets the turn's end      | gets `FLEET_SERVER_LOST`          |
 */
export async function settleDoubt(state: ClientState, turn: Turn, doubt: Doubt): Promise<void> {
  const { requests, ends, report } = state;
  const { record, waiting, sent } = turn;
  const { id } = record;
  const seen = ends.seen(id);
  let begun: ReadonlyMap<Prompt, string> | null = null;
  try {
    // Without message ids we cannot find every prompt that has begun, and sending such a prompt again would run it
    // twice.
    const isKnown = namesPrompts(doubt.link.greeting.version) && (await hasEnded(doubt.link.server));
    if (isKnown) begun = await begunPrompts(state, turn, doubt);
  } catch (error) {
    report.event({ event: "failed", sessionId: id, ...failure(error, "The session's history could not be read") });
  }
  turn.settle(doubt.prompts);
  const begunUnrecorded = seenBegun(doubt.prompts, seen, begun ?? new Map());
  let isCut = false;
  for (const prompt of doubt.prompts) {
    const messageId = begun?.get(prompt) ?? begunUnrecorded.get(prompt);
    sent.delete(prompt);
    if (messageId !== undefined) {
      isCut = true;
      if (prompt.isAnswered) continue;
      requests.reply(prompt.request, { messageId }, [messageId]);
      turn.answered(true);
    } else if (begun === null || prompt.isRepeated || !turn.active) {
      isCut ||= prompt.isAnswered;
      if (prompt.isAnswered) continue;
      turn.answered(false);
      requests.refuse(prompt.request, serverLost("it answered"));
    } else {
      prompt.isRepeated = true;
      if (prompt.isAnswered) {
        turn.sendsAgain();
        ends.sentAgain(id, prompt.sent?.messageIds ?? []);
      }
      waiting.insert(prompt);
    }
  }
  if (isCut) ends.cut(id, SERVER_ENDED);
  if (waiting.isEmpty) turn.end("lost");
}

/** Returns the prompts that the session's history shows as begun, each with its message id there, or with a new id. */
async function begunPrompts(state: ClientState, turn: Turn, { prompts, link }: Doubt): Promise<Map<Prompt, string>> {
  const { id } = turn.record;
  const fromBytes = Math.min(...prompts.map(({ sent }) => sent?.historyBytes ?? 0));
  const recorded = await promptsSince(state.homeOf(id, link.server), id, fromBytes);
  const found = new Map<Prompt, string>();
  const known = new Set<string>();
  for (const { sent } of turn.sent) for (const messageId of sent?.messageIds ?? []) known.add(messageId);
  for (const prompt of prompts) {
    const isThere = recorded.find(({ messageId = "" }) => prompt.sent?.messageIds?.includes(messageId));
    if (isThere?.messageId !== undefined) found.set(prompt, isThere.messageId);
  }
  // `unknown` has the records whose ids were in no answer. They belong to prompts that the server began but did not
  // answer.
  const unknown = recorded.filter(({ messageId = "" }) => !known.has(messageId));
  const unanswered = prompts.filter(({ sent }) => sent?.messageIds === null);
  const take = (prompt: Prompt, at: number) => {
    if (at !== -1) found.set(prompt, unknown.splice(at, 1)[0]?.messageId ?? randomUUID());
  };
  for (const prompt of unanswered) {
    const { prompt: text } = prompt.request.params;
    take(
      prompt,
      unknown.findIndex(({ content }) => content === text),
    );
  }
  // The history may have the prompt with another text. So that no prompt runs twice, match the remaining prompts with
  // the remaining records, in order. A prompt with a record counts as begun.
  for (const prompt of unanswered) if (!found.has(prompt)) take(prompt, unknown.length > 0 ? 0 : -1);
  return found;
}

/**
 * Returns the unanswered prompts that are not in the history but whose `user.message` the door has seen, each with its
 * message id. The server may send this event before its answer, and write the prompt to the history later.
 *
 * @param seen the message ids in the events
 * @param recorded the prompts that the history has
 */
function seenBegun(
  prompts: readonly Prompt[],
  seen: ReadonlySet<string>,
  recorded: ReadonlyMap<Prompt, string>,
): Map<Prompt, string> {
  const ids = new Set(seen);
  for (const id of recorded.values()) ids.delete(id);
  const found = new Map<Prompt, string>();
  for (const prompt of prompts) {
    const { sent } = prompt;
    if (sent === undefined || sent.messageIds !== null || recorded.has(prompt)) continue;
    const id = [...ids].find((each) => !sent.seenBefore.has(each));
    if (id === undefined) continue;
    ids.delete(id);
    found.set(prompt, id);
  }
  return found;
}

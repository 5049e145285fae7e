import type { AssistantMessageEvent, CopilotSession, MessageOptions, SessionEvent } from "@github/copilot-sdk";
import { FleetError, option } from "../../errors.js";
import { abortable, deadline } from "../deadline.js";

export interface TurnOptions {
  /** How long the turn may take, in milliseconds, until it is given up and aborted; forever by default. */
  timeoutMs?: number;
  signal?: AbortSignal;
  /** Called with each piece of the reply as it arrives; needs a session with `streaming: true`. */
  onDelta?: (text: string) => void;
}

/** A reply of the model: its whole text, empty if the turn ended without one. */
export interface TurnReply {
  text: string;
  /** The SDK's event that carried it. */
  event: AssistantMessageEvent | undefined;
}

type Outcome = { kind: "idle" } | { kind: "failed"; error: FleetError };

const ABORT_WAIT_MS = 2_000;

/**
 * One turn: sends the prompt and waits for `session.idle`, the end of everything the prompt set off.
 *
 * Unlike the SDK's `sendAndWait` it never hangs: the end of the connection ends the wait at once. (A server that is
 * terminated during a turn drops it without a word; measured with SDK 1.0.14.)
 *
 * @throws FleetError `FLEET_TURN_FAILED` (the runtime's or model's error), `FLEET_SERVER_LOST`, `FLEET_TURN_TIMEOUT`; or the
 * signal's reason. In the last two cases the turn is aborted, so that the session is free for the next one.
 */
export async function runTurn(
  session: CopilotSession,
  closed: Promise<void>,
  message: MessageOptions,
  options: TurnOptions = {},
): Promise<TurnReply> {
  const reply: TurnReply = { text: "", event: undefined };
  let unsubscribe = (): void => undefined;
  const ended = new Promise<Outcome>((resolve) => {
    unsubscribe = session.on((event) => {
      const outcome = follow(session.sessionId, event, reply, options.onDelta);
      if (outcome !== null) resolve(outcome);
    });
  });
  using limit = deadline(options.timeoutMs, options.signal);
  const stop = limit.signal;
  const lost = closed.then((): Outcome => ({ kind: "failed", error: serverLost(session.sessionId) }));
  let sent: Promise<unknown> | undefined;
  try {
    stop.throwIfAborted();
    sent = session.send(message);
    // A send that fails after the race is over has been answered for already.
    sent.catch(() => undefined);
    const outcome = await abortable(Promise.race([sent.then(() => ended), ended, lost]), stop);
    if (outcome.kind === "failed") throw outcome.error;
    return reply;
  } catch (error) {
    if (!stop.aborted) throw await asTurnError(error, session.sessionId, closed);
    // Its end is waited for, or the next turn would take the end of this one for its own. Best effort: it may be over.
    const aborted = sent === undefined ? undefined : session.abort().then(() => ended);
    await Promise.race([aborted, closed, wait(ABORT_WAIT_MS)]).catch(() => undefined);
    if (options.signal?.aborted === true) throw options.signal.reason;
    throw turnTimeout(session.sessionId, options.timeoutMs);
  } finally {
    unsubscribe();
  }
}

/** Keeps `reply` current and tells when the turn is over. Events of sub-agents do not count: their work is inside it. */
function follow(
  sessionId: string,
  event: SessionEvent,
  reply: TurnReply,
  onDelta: TurnOptions["onDelta"],
): Outcome | null {
  if ("agentId" in event && event.agentId !== undefined) return null;
  switch (event.type) {
    case "assistant.message_delta":
      onDelta?.(event.data.deltaContent);
      return null;
    case "assistant.message":
      if (event.data.content !== "") {
        reply.text = event.data.content;
        reply.event = event;
      }
      return null;
    case "session.idle":
      return event.data.mode === "autopilot" ? null : { kind: "idle" };
    case "session.error":
      return { kind: "failed", error: turnFailed(sessionId, `The turn failed: ${event.data.message}`) };
    default:
      return null;
  }
}

/** A send that was rejected since the connection broke says so in many ways: all of them mean the server is lost. */
async function asTurnError(error: unknown, sessionId: string, closed: Promise<void>): Promise<unknown> {
  if (error instanceof FleetError) return error;
  const gone = await Promise.race([closed.then(() => true), wait(50).then(() => false)]);
  if (gone) return serverLost(sessionId, error);
  const reason = error instanceof Error ? error.message : String(error);
  return turnFailed(sessionId, `The prompt was not accepted: ${reason}`, error);
}

function turnFailed(sessionId: string, message: string, cause?: unknown): FleetError {
  // The id stands here since whoever let `create` choose one has not seen it yet.
  return new FleetError("FLEET_TURN_FAILED", message, {
    cause,
    suggestions: [`The session goes on: copilotfleet send ${sessionId} TEXT --user USER`],
  });
}

function serverLost(sessionId: string, cause?: unknown): FleetError {
  return new FleetError("FLEET_SERVER_LOST", `The server ended while session ${sessionId} was in a turn.`, {
    cause,
    suggestions: ["Send it again: the history up to the last finished step is kept."],
  });
}

function turnTimeout(sessionId: string, timeoutMs: number | undefined): FleetError {
  return new FleetError("FLEET_TURN_TIMEOUT", `Session ${sessionId} did not finish its turn within ${timeoutMs} ms.`, {
    suggestions: [
      `Give it longer: ${option("timeout", "10m")}`,
      `The session goes on: copilotfleet send ${sessionId} TEXT --user USER`,
    ],
  });
}

function wait(ms: number): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, ms).unref();
  });
}

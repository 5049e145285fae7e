import { setTimeout as delay } from "node:timers/promises";
import type { AssistantMessageEvent, CopilotSession, MessageOptions, SessionEvent } from "@github/copilot-sdk";
import { abortable, type Clock, deadline, systemClock } from "../../base/clock.js";
import { FleetError, option } from "../../base/errors.js";
import { writeDuration } from "../../base/values/measures.js";
import { isRefusedCredential, mayPass, reasonOf, withReason } from "../history/turn-tracker.js";

export interface TurnOptions {
  /** How long the turn may take before it is aborted, in milliseconds. There is no limit by default. */
  timeoutMs?: number;
  signal?: AbortSignal;
  /** Receives each piece of the reply as it arrives. Needs a session with `streaming: true`. */
  onDelta?: (text: string) => void;
  /** Receives each event of the turn, such as tool calls and usage. Events of sub-agents have an `agentId`. */
  onEvent?: (event: SessionEvent) => void;
}

/** A reply of the model. The text is empty if the turn ended without a reply. */
export interface TurnReply {
  text: string;
  event: AssistantMessageEvent | undefined;
  /** `aborted`: somebody aborted the turn, and the text is what the model had written so far. */
  outcome: "completed" | "aborted";
}

type Outcome = { kind: "idle" } | { kind: "failed"; error: FleetError };

/** The message of the error for a prompt that the server accepted but never began, although the server is idle. */
export const NEVER_BEGAN =
  "The server took the prompt, but reported no turn for it. Check the session's history before you send the prompt again.";
/**
 * How long to wait for the end of an aborted turn, and for the beginning of a prompt that has to be aborted, in
 * milliseconds.
 */
const [ABORT_WAIT_MS, BEGIN_WAIT_MS] = [2_000, 10_000];
/**
 * The pauses before we ask again whether the server is at work on a prompt, in milliseconds. A busy server begins a
 * prompt late, so we keep asking for several seconds. After an error, two questions are enough, because a failed prompt
 * never begins. After an abort, we ask for less than two seconds, because the server has probably dropped the prompt,
 * and a user is waiting.
 */
const ASKED_MS = [0, 250, 500, 1_000, 2_000, 4_000];
const [ASKED_AFTER_ERROR, ASKED_AFTER_ABORT] = [2, 4];

/**
 * Runs one turn: sends the prompt and waits for `session.idle`, which arrives when everything that the prompt started
 * has ended. Events that arrive before the prompt has begun belong to another turn. If the connection ends, this
 * function rejects at once, unlike the SDK's `sendAndWait` (measured with SDK 1.0.14). At the timeout, and when the
 * signal aborts, this function aborts the turn, so that the session is free for the next turn.
 *
 * @param clock replaced in tests
 */
export async function runTurn(
  session: CopilotSession,
  closed: Promise<void>,
  message: MessageOptions,
  options: TurnOptions = {},
  clock: Clock = systemClock,
): Promise<TurnReply> {
  const prompt = new SentPrompt(session, options, clock);
  const { ended } = prompt;
  const unsubscribe = session.on((event) => prompt.push(event));
  using limit = deadline(options.timeoutMs, options.signal);
  const stop = limit.signal;
  const lost = closed.then((): Outcome => ({ kind: "failed", error: serverLost(session.sessionId) }));
  let sent: Promise<unknown> | undefined;
  try {
    stop.throwIfAborted();
    sent = session.send(message).then((messageId) => prompt.taken(messageId));
    // If the send fails after the race is over, its error no longer matters.
    sent.catch(() => undefined);
    const outcome = await abortable(Promise.race([sent.then(() => ended), ended, lost]), stop);
    if (outcome.kind === "failed") throw outcome.error;
    return prompt.reply;
  } catch (error) {
    if (!stop.aborted) throw await asTurnError(error, session.sessionId, closed);
    if (sent !== undefined) await prompt.abort(closed);
    if (options.signal?.aborted === true) throw options.signal.reason;
    throw turnTimeout(session.sessionId, options.timeoutMs);
  } finally {
    unsubscribe();
  }
}

/** Follows one prompt through the events of its session. */
class SentPrompt {
  readonly reply: TurnReply = { text: "", event: undefined, outcome: "completed" };
  readonly ended: Promise<Outcome>;
  /** Resolves when the server has begun the prompt, or the turn has ended. */
  readonly #beginsOrEnds: Promise<unknown>;
  readonly #session: CopilotSession;
  readonly #listeners: Pick<TurnOptions, "onDelta" | "onEvent">;
  readonly #clock: Clock;
  #end: (outcome: Outcome) => void = () => undefined;
  #onBegin: () => void = () => undefined;
  /** Events that arrived before the server answered `session.send` with the prompt's id. Null after that answer. */
  #early: SessionEvent[] | null = [];
  #messageId: string | undefined;
  #begun = false;
  #isAborted = false;
  #isOver = false;
  #failure: FleetError | undefined;
  /** The pieces of a message that is not complete. */
  #partial = "";

  constructor(session: CopilotSession, listeners: Pick<TurnOptions, "onDelta" | "onEvent">, clock: Clock) {
    this.#session = session;
    this.#listeners = listeners;
    this.#clock = clock;
    this.ended = new Promise((resolve) => {
      this.#end = (outcome) => {
        this.#isOver = true;
        resolve(outcome);
      };
    });
    const begun = new Promise<void>((resolve) => {
      this.#onBegin = resolve;
    });
    this.#beginsOrEnds = Promise.race([begun, this.ended]);
  }

  /**
   * Aborts the turn and waits until it has ended. Otherwise, the caller's next turn would take the `session.idle` of
   * this turn for its own end. Ignores failures, because the turn may already be over.
   */
  async abort(closed: Promise<void>): Promise<void> {
    const within = async (ms: number, work: Promise<unknown>) => {
      using patience = deadline(ms);
      await abortable(Promise.race([work, closed]), patience.signal);
    };
    this.#isAborted = true;
    try {
      const hadBegun = this.#begun;
      await within(ABORT_WAIT_MS, this.#session.abort());
      if (!hadBegun) {
        // The server drops an abort that arrives between the prompt and the beginning of its turn (measured with
        // 1.0.85).
        await within(BEGIN_WAIT_MS, this.#beginsOrEnds);
        // If this turn is over, do not abort again, because the session may be in another client's turn.
        if (!this.#isOver) await within(ABORT_WAIT_MS, this.#session.abort());
      }
      await within(ABORT_WAIT_MS, this.ended);
    } catch {
      // The server is too slow, or the turn is over.
    }
  }

  push(event: SessionEvent): void {
    if (this.#early === null) this.#follow(event);
    else this.#early.push(event);
  }

  /**
   * Call this when the server has accepted the prompt. @param messageId undefined if the server's answer contains no id
   */
  taken(messageId: string | undefined): void {
    const early = this.#early ?? [];
    this.#early = null;
    this.#messageId = messageId;
    this.#begun = messageId === undefined;
    for (const event of early) this.#follow(event);
  }

  #follow(event: SessionEvent): void {
    if (!this.#begun && this.#isOwnPrompt(event)) this.#begin();
    if (this.#begun) this.#listeners.onEvent?.(withReason(event));
    // Sub-agents work inside a turn, so their events do not end it.
    if ("agentId" in event && event.agentId !== undefined) return;
    switch (event.type) {
      case "assistant.message_delta":
        this.#partial += event.data.deltaContent;
        if (this.#begun) this.#listeners.onDelta?.(event.data.deltaContent);
        break;
      case "assistant.message":
        this.#partial = "";
        if (event.data.content === "") break;
        this.reply.text = event.data.content;
        this.reply.event = event;
        break;
      case "abort":
        this.reply.outcome = "aborted";
        if (this.#partial !== "") this.reply.text = this.#partial;
        break;
      case "session.idle":
        if (event.data.mode === "autopilot") break;
        if (this.#begun) this.#end({ kind: "idle" });
        else void this.#endUnlessAtWork();
        break;
      case "session.error":
        this.#failure = failureOf(this.#session.sessionId, event.data);
        if (this.#begun) this.#end({ kind: "failed", error: this.#failure });
        break;
    }
  }

  #isOwnPrompt(event: SessionEvent): boolean {
    if (event.type !== "user.message") return false;
    const { messageId, source, isAutopilotContinuation } = event.data;
    if (messageId !== undefined) return messageId === this.#messageId;
    // Runtimes before 1.0.83 report no ids, so take the first message that a client can have sent.
    return !("agentId" in event && event.agentId !== undefined) && source === undefined && !isAutopilotContinuation;
  }

  #begin(): void {
    this.#begun = true;
    this.#onBegin();
    Object.assign(this.reply, { text: "", event: undefined, outcome: "completed" });
    this.#partial = "";
    this.#failure = undefined;
  }

  /**
   * Ends the turn as failed if the server is not at work: the prompt failed before its turn began, or the server lost
   * it. Never rejects.
   */
  async #endUnlessAtWork(): Promise<void> {
    for (const pauseMs of this.#pauses()) {
      await this.#clock.wait(pauseMs);
      if (this.#begun || (await this.#isAtWork())) return;
    }
    const error = this.#failure ?? turnFailed(this.#session.sessionId, NEVER_BEGAN);
    this.#end({ kind: "failed", error });
  }

  #pauses(): readonly number[] {
    return ASKED_MS.slice(0, this.#failure !== undefined ? ASKED_AFTER_ERROR : this.#isAborted ? ASKED_AFTER_ABORT : 6);
  }

  async #isAtWork(): Promise<boolean> {
    try {
      return (await this.#session.rpc.metadata.activity()).hasActiveWork;
    } catch {
      return false; // the session is not loaded, so it is not in a turn
    }
  }
}

/**
 * Returns the error to throw for a failed turn. If the connection has closed, every error other than a `FleetError`
 * becomes `FLEET_SERVER_LOST`.
 */
async function asTurnError(error: unknown, sessionId: string, closed: Promise<void>): Promise<unknown> {
  if (error instanceof FleetError) return error;
  const gone = await Promise.race([closed.then(() => true), delay(50).then(() => false)]);
  if (gone) return serverLost(sessionId, error);
  const reason = error instanceof Error ? error.message : String(error);
  return turnFailed(sessionId, `The prompt was not accepted: ${reason}`, error);
}

function failureOf(sessionId: string, data: { message: string; statusCode?: number }): FleetError {
  const message = `The turn failed: ${reasonOf(data.message)}`;
  const again = `copilotfleet send ${sessionId} TEXT --user USER` as const;
  if (isRefusedCredential(data.statusCode)) {
    const suggestions = ["copilotfleet doctor", `${again} # with a new token or key`] as const;
    return new FleetError("FLEET_CREDENTIAL_REFUSED", message, { suggestions });
  }
  if (!mayPass(data.message)) return turnFailed(sessionId, message);
  return new FleetError("FLEET_MODEL_UNAVAILABLE", message, { suggestions: ["copilotfleet doctor", again] });
}

function turnFailed(sessionId: string, message: string, cause?: unknown): FleetError {
  // Show the session's id here, because a user who let `create` choose the id has not seen it so far.
  return new FleetError("FLEET_TURN_FAILED", message, {
    cause,
    // Another prompt would fail in the same way on a full disk.
    suggestions: /ENOSPC|EDQUOT/.test(message)
      ? ["copilotfleet doctor", "copilotfleet gc"]
      : [`copilotfleet send ${sessionId} TEXT --user USER`],
  });
}

function serverLost(sessionId: string, cause?: unknown): FleetError {
  return new FleetError("FLEET_SERVER_LOST", `The server ended while session ${sessionId} was in a turn.`, {
    cause,
    suggestions: ["Send the prompt again: the history up to the last finished step is kept."],
  });
}

function turnTimeout(sessionId: string, timeoutMs = 0): FleetError {
  const message = `Session ${sessionId} did not finish its turn within ${writeDuration(timeoutMs)}.`;
  return new FleetError("FLEET_TURN_TIMEOUT", message, {
    suggestions: [
      `Give it longer with ${option("timeout", "10m")}.`,
      `copilotfleet send ${sessionId} TEXT --user USER`,
    ],
  });
}

import type { CopilotSession, SessionEvent } from "@github/copilot-sdk";
import { FleetError, isFleetError } from "../../base/errors.js";
import { errorOfDoor } from "../../hosts/calls/control-link.js";
import { abortable, deadline, pause } from "../../base/clock.js";
import { Transcriber, type TranscriptEntry } from "../../runtime/history/transcript.js";
import { reasonOf } from "../../runtime/history/turn-tracker.js";
import { isUnloaded } from "../../sessions/use/load.js";
import type { SessionView } from "../../sessions/view.js";
import type { Backend, OpenSession, TurnOptions } from "./backends.js";

export interface PromptOptions extends TurnOptions {
  /** Called when the chat has lost the connection, before or during the turn, and is about to connect again. */
  onLost: () => void;
  /** Called when the chat has connected again and found the prompt in the history, so the turn has begun. */
  onFound: () => void;
}

/** How long to wait before asking again whether a turn has ended, and for the abort of a turn, in milliseconds. */
const [RETRY_MS, ABORT_MS] = [500, 2_000];

/**
 * A session that the chat has open. If the server or the connection has ended, the next call opens the session again.
 * If a signal aborts, the call rejects with the signal's reason, and the session can still be used.
 */
export class ChatSession {
  readonly id: string;
  readonly #backend: Backend;
  #model: string | undefined;
  /** Null if the session must be opened again. */
  #open: OpenSession | null = null;
  /** The id of the last recorded event that this chat has received; undefined if it has received none. */
  #lastKnown: string | undefined;

  private constructor(backend: Backend, id: string, model: string | undefined) {
    this.id = id;
    this.#backend = backend;
    this.#model = model;
  }

  /** Opens a session; creates one if `id` is null. */
  static async open(backend: Backend, id: string | null, model: string | undefined, signal: AbortSignal) {
    const open = await backend.open(id, model, signal);
    const session = new ChatSession(backend, open.session.sessionId, model);
    session.#keep(open);
    return session;
  }

  /** Runs one turn. @throws the errors of `fleet.sessions.send`. */
  async send(prompt: string, options: PromptOptions): Promise<void> {
    if (this.#open === null) options.onLost();
    const session = await this.#opened(options.signal);
    const turn = { prompt, known: this.#lastKnown, hasBegun: false, isAnswered: false };
    const onEvent = (event: SessionEvent) => {
      turn.hasBegun = true;
      turn.isAnswered ||= isAnswer(event);
      if (event.ephemeral !== true) this.#lastKnown = event.id;
      options.onEvent(event);
    };
    try {
      await this.#backend.send(session, prompt, { ...options, onEvent });
    } catch (error) {
      if (!isFleetError(error, "FLEET_SERVER_LOST") || !this.#backend.outlivesConnection) throw error;
      options.onLost();
      await this.#catchUp(turn, { ...options, onEvent });
    }
  }

  async view(): Promise<SessionView | null> {
    return await this.#backend.view(this.id);
  }

  /** The model of the next turn; null if the server does not report it. */
  async model(signal: AbortSignal): Promise<string | null> {
    return await this.#asked(async ({ rpc }) => (await rpc.model.getCurrent()).modelId ?? null, signal);
  }

  /** The models that the user may choose from; empty if the provider does not list them. */
  async models(signal: AbortSignal): Promise<string[]> {
    const { list } = await this.#asked(async ({ rpc }) => await rpc.model.list(), signal);
    return list.flatMap((each) => (typeof each === "object" && each !== null && "id" in each ? [String(each.id)] : []));
  }

  /** Opens the session again with the model. If that succeeds, all later openings use this model, too. */
  async useModel(model: string, signal: AbortSignal): Promise<void> {
    await this.#reopen(signal, model);
    this.#model = model;
  }

  /** Reads the conversation so far. @param turns how many of the latest turns to read */
  async past(signal: AbortSignal, turns = Number.POSITIVE_INFINITY): Promise<TranscriptEntry[]> {
    const events = await this.#asked(async (session) => await session.getEvents(), signal);
    this.#lastKnown = events.at(-1)?.id ?? this.#lastKnown;
    const transcriber = new Transcriber(null);
    const entries = events.flatMap((event) => [...transcriber.push(Buffer.from(`${JSON.stringify(event)}\n`))]);
    entries.push(...transcriber.end(Date.now(), true));
    const last = entries.at(-1)?.turn ?? 0;
    return entries.filter(({ turn }) => turn > last - turns);
  }

  /** Leaves the session. Its state stays. */
  async leave(): Promise<void> {
    const open = this.#open;
    this.#open = null;
    if (open !== null) await this.#backend.leave(open);
  }

  /** After an error other than a refusal or an abort, opens the session again and asks once more. */
  async #asked<T>(ask: (session: CopilotSession) => Promise<T>, signal: AbortSignal): Promise<T> {
    const open = await this.#opened(signal);
    try {
      return await abortable(ask(open.session), signal);
    } catch (error) {
      if (signal.aborted || isRefusal(error)) throw errorOfDoor(error) ?? error;
      const again = await this.#reopen(signal);
      return await abortable(ask(again.session), signal);
    }
  }

  async #opened(signal: AbortSignal): Promise<OpenSession> {
    return this.#open ?? (await this.#reopen(signal));
  }

  async #reopen(signal: AbortSignal, model = this.#model): Promise<OpenSession> {
    await this.leave();
    return this.#keep(await this.#backend.open(this.id, model, signal));
  }

  #keep(open: OpenSession): OpenSession {
    this.#open = open;
    void open.closed.then(() => {
      if (this.#open === open) this.#open = null;
    });
    return open;
  }

  /** Connects again, waits until the turn has ended, and reports the events that the chat missed. */
  async #catchUp(turn: FollowedTurn, { signal, onEvent, onFound }: PromptOptions): Promise<void> {
    let missed: SessionEvent[] | null;
    try {
      const { session } = await this.#opened(signal);
      const read = async () => missedEvents(await abortable(session.getEvents(), signal), this.#lastKnown, turn);
      if (turn.hasBegun || (await read()) !== null) onFound();
      while ((await abortable(session.rpc.metadata.activity(), signal)).hasActiveWork) await pause(RETRY_MS, signal);
      missed = await read();
    } catch (cause) {
      // Cancel the turn if there is a connection. Without one, the turn may go on, so do not report it as cancelled.
      if (signal.aborted && this.#open !== null) {
        using limit = deadline(ABORT_MS);
        await abortable(this.#open.session.abort(), limit.signal).catch(() => undefined);
        throw signal.reason;
      }
      const reason = signal.aborted || !(cause instanceof Error) ? "" : ` ${cause.message}`;
      const message = `The connection ended during the turn. Nobody knows whether the prompt arrived.${reason}`;
      throw new FleetError("FLEET_SERVER_LOST", message, {
        cause,
        suggestions: ["Look with /history when it is back."],
      });
    }
    if (missed === null) throw lost("The connection ended before the prompt reached the session.");
    for (const event of missed) onEvent(event);
    if (turn.isAnswered) return;
    const failure = missed.findLast((event) => event.type === "session.error" && isOfMainAgent(event));
    if (failure?.type === "session.error")
      throw new FleetError("FLEET_TURN_FAILED", `The turn failed: ${reasonOf(failure.data.message)}`);
    throw lost("The connection ended during the turn, and the turn ended without an answer.");
  }
}

interface FollowedTurn {
  prompt: string;
  hasBegun: boolean;
  isAnswered: boolean;
}

/** The events of the turn that come after the last known event in the history; null if its prompt is not there. */
export function missedEvents(
  history: readonly SessionEvent[],
  lastKnown: string | undefined,
  { prompt, hasBegun }: Pick<FollowedTurn, "prompt" | "hasBegun">,
): SessionEvent[] | null {
  const after = history.slice(history.findIndex(({ id }) => id === lastKnown) + 1);
  const isPrompt = (event: SessionEvent) =>
    event.type === "user.message" && isOfMainAgent(event) && (event.data.source ?? "user") === "user";
  const start = hasBegun
    ? 0
    : after.findIndex((event) => isPrompt(event) && event.type === "user.message" && event.data.content === prompt);
  if (start === -1) return null;
  const end = after.findIndex((event, at) => isPrompt(event) && (hasBegun || at > start));
  return after.slice(start, end === -1 ? undefined : end);
}

/** Whether the event is the main agent's answer in a turn: its only message that calls no tools. */
function isAnswer(event: SessionEvent): boolean {
  return event.type === "assistant.message" && isOfMainAgent(event) && (event.data.toolRequests ?? []).length === 0;
}

function isOfMainAgent(event: SessionEvent): boolean {
  return !("agentId" in event) || event.agentId === undefined;
}

function lost(message: string): FleetError {
  return new FleetError("FLEET_SERVER_LOST", message, { suggestions: ["Send the prompt again."] });
}

/** The codes of the errors with which vscode-jsonrpc rejects a request whose connection has ended. */
const UNANSWERED: ReadonlySet<unknown> = new Set([-32_099, -32_098, -32_097, -32_096]);

/**
 * Whether the server refused a request of the SDK, so that repeating the request cannot help. False if the connection
 * has ended or the server has unloaded the session.
 */
function isRefusal(error: unknown): boolean {
  if (!(error instanceof Error) || !("code" in error) || isUnloaded(error)) return false;
  return typeof error.code === "number" && error.code < 0 && !UNANSWERED.has(error.code);
}

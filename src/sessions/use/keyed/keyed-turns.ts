import type { SessionEvent } from "@github/copilot-sdk";
import { sha256 } from "../../../config/values/text.js";
import { isFleetError } from "../../../errors.js";
import type { KeyedTurn, TurnUsage } from "../../../model/session.js";
import type { TurnReply } from "../../../runtime/client/turn.js";
import { abortable, either, pause } from "../../../runtime/clock.js";
import { storedEnd } from "../../problems.js";
import { RecordedTurn } from "./recorded-turn.js";
import { type JournalContext, type KeyedRequest, readKeyed, recall, TurnJournal } from "./turn-journal.js";

const POLL_MS = 250;

/** A request with a key. Other requests with the key must have the same session, prompt, timeout and attachments. */
export interface Asked {
  user: string;
  key: string;
  sessionId: string;
  prompt: string;
  timeoutMs: number | undefined;
  attachments?: unknown;
  onEvent: ((event: SessionEvent) => void) | undefined;
  signal: AbortSignal;
}

/** The reply of a turn that another request has run. */
interface Recalled {
  reply: TurnReply;
  turn: string;
  usage: TurnUsage | null;
  session: null;
}

/**
 * Runs the turns of requests with idempotency keys. A user's requests with the same key share one turn: the first
 * request runs the turn, and the other requests wait for its end and get the same reply. After a crash, the next
 * request with the key looks into the session's history. If the history has the prompt, the prompt is not sent again.
 */
export class KeyedTurns {
  readonly #context: JournalContext;
  /** The requests that this process works on, by user and key. The promises never reject. */
  readonly #running = new Map<string, Promise<unknown>>();

  constructor(context: JournalContext) {
    this.#context = context;
  }

  /**
   * Runs the turn of a request. If another request with the key has run the turn, returns the reply of that turn.
   *
   * @param take uses the session, and runs the turn through the journal. Resolves with null if the journal shows that
   * the turn is over.
   * @throws FleetError `FLEET_IDEMPOTENCY_KEY_REUSED`; the error of the turn, even if another request has run it.
   */
  async use<T>(asked: Asked, take: (journal: TurnJournal) => Promise<T | null>): Promise<T | Recalled> {
    const request = requestOf(asked);
    const name = JSON.stringify([asked.user, asked.key]);
    for (;;) {
      const known = await readKeyed(this.#context.store, request);
      if (known !== null && known.outcome !== null) return await this.#answer(known, request);
      const running = this.#running.get(name);
      if (running !== undefined) {
        await this.#following(request, abortable(running, request.signal));
        continue;
      }
      const attempt = take(new TurnJournal(this.#context, request));
      const settled = attempt.then(
        () => undefined,
        () => undefined,
      );
      this.#running.set(name, settled);
      try {
        const used = await (known === null ? attempt : this.#following(request, attempt));
        if (used !== null) return used;
      } catch (error) {
        // Another process is running the turn, so look again after a pause.
        if (known === null || !isInUse(error)) throw error;
        await pause(POLL_MS, request.signal);
      } finally {
        if (this.#running.get(name) === settled) this.#running.delete(name);
      }
    }
  }

  async #answer(known: KeyedTurn, request: KeyedRequest): Promise<Recalled> {
    const { outcome, usage, messageId } = known;
    if (outcome !== null && outcome !== "answered") throw storedEnd(outcome);
    const reply = await recall(this.#context.histories, known, request);
    return { reply, turn: messageId ?? "", usage, session: null };
  }

  /** Waits for a turn that another request has begun, and passes its recorded events to this request's listener. */
  async #following<T>(request: KeyedRequest, turn: Promise<T>): Promise<T> {
    const over = new AbortController();
    using end = either(over.signal, request.signal);
    const following = this.#follow(request, end.signal).catch(() => "the caller gets the rest from the history");
    try {
      return await turn;
    } finally {
      over.abort();
      await following;
    }
  }

  async #follow(request: KeyedRequest, signal: AbortSignal): Promise<void> {
    const { store, histories } = this.#context;
    const { user, sessionId, onEvent } = request;
    let messageId: string | null | undefined;
    while (messageId == null) {
      await pause(POLL_MS, signal);
      messageId = (await readKeyed(store, request))?.messageId;
    }
    const turn = new RecordedTurn(sessionId, messageId);
    for await (const event of histories.events(sessionId, { user, follow: true, signal })) {
      if (turn.push(event)) onEvent(event);
      if (turn.isOver) return;
    }
  }
}

/** A request whose listener gets each event only once, even if the event comes from both the turn and the history. */
function requestOf({ user, key, sessionId, prompt, timeoutMs, attachments, onEvent, signal }: Asked): KeyedRequest {
  const seen = new Set<string>();
  return {
    ...{ user, key, sessionId, prompt, signal },
    digest: sha256(JSON.stringify([sessionId, prompt, timeoutMs ?? null, attachments ?? null])),
    onEvent: (event) => {
      if (seen.has(event.id)) return;
      seen.add(event.id);
      onEvent?.(event);
    },
  };
}

function isInUse(error: unknown): boolean {
  return isFleetError(error, "FLEET_SESSION_LOCKED") || isFleetError(error, "FLEET_SESSION_BUSY");
}

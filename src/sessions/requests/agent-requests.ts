import { randomUUID } from "node:crypto";
import type { Clock } from "../../runtime/clock.js";
import { abortable, deadlineOn } from "../../runtime/clock.js";
import { requestClosed, requestNotFound, verdictOf } from "./problems.js";
import type { AgentRequest, Asked, RequestAnswer, RequestChange, Verdict } from "./request.js";

/** How many closed requests to remember, so that a late answer gets a clear error. */
const MOST_CLOSED = 1_000;
/** How often to check whether the server of a waiting request is about to end, in milliseconds. */
const LOOK_MS = 1_000;

/** A request that waits for an answer. The first call of `close` ends it, and later calls do nothing. */
export interface WaitingRequest {
  readonly request: AgentRequest;
  /** Resolves at the end of the request. Never rejects. */
  readonly verdict: Promise<Verdict>;
  close(verdict: Verdict): void;
}

type Listener = (change: RequestChange) => void;

export interface AgentRequestsContext {
  /** How long a request waits for its answer, in milliseconds. */
  answerMs: number;
  clock: Clock;
  /** Whether the server of a session is about to end. */
  isEnding: (sessionId: string) => Promise<boolean>;
}

/**
 * The permission requests and questions of the agents in this process's turns. They are only in memory, because they
 * end with this process anyway: when its connection to a server ends, the runtime ends the turn (measured with 1.0.85).
 */
export class AgentRequests {
  readonly #waiting = new Map<string, WaitingRequest>();
  readonly #closed = new Map<string, AgentRequest>();
  readonly #listeners = new Set<Listener>();
  readonly #ownListeners = new Set<Listener>();
  readonly #context: AgentRequestsContext;
  #isLooking = false;

  constructor(context: AgentRequestsContext) {
    this.#context = context;
  }

  /** How many requests wait. */
  get size(): number {
    return this.#waiting.size;
  }

  /**
   * Opens a request.
   *
   * @param until when it aborts, the request expires at once
   */
  open(session: string, user: string, asked: Asked, until?: AbortSignal): WaitingRequest {
    const { answerMs } = this.#context;
    const now = Date.now();
    const request: AgentRequest = {
      id: randomUUID(),
      session,
      user,
      kind: asked.permission === null ? "question" : "permission",
      openedAt: new Date(now).toISOString(),
      expiresAt: new Date(now + answerMs).toISOString(),
      ...asked,
      outcome: null,
    };
    let resolve: (verdict: Verdict) => void = () => undefined;
    const verdict = new Promise<Verdict>((done) => {
      resolve = done;
    });
    const waiting: WaitingRequest = {
      request,
      verdict,
      close: (given) => {
        if (!this.#waiting.delete(request.id)) return;
        this.#remember({ ...request, outcome: given.outcome });
        resolve(given);
      },
    };
    this.#waiting.set(request.id, waiting);
    this.#changed({ type: "request.opened", request });
    void this.#expire(waiting, until);
    if (!this.#isLooking) void this.#lookForEnds();
    return waiting;
  }

  async #expire({ verdict, close }: WaitingRequest, until: AbortSignal | undefined): Promise<void> {
    const { clock, answerMs } = this.#context;
    using limit = deadlineOn(clock, answerMs, until);
    await abortable(verdict, limit.signal).catch(() => close({ outcome: "expired" }));
  }

  /**
   * Expires each request whose server is about to end. Otherwise, the drain of that server would wait for the request's
   * turn. Never rejects.
   */
  async #lookForEnds(): Promise<void> {
    const { clock, isEnding } = this.#context;
    this.#isLooking = true;
    while (this.#waiting.size > 0) {
      await clock.wait(LOOK_MS, { ref: false });
      for (const { request, close } of [...this.#waiting.values()]) {
        // If the store does not answer, look again in the next round.
        if (await isEnding(request.session).catch(() => false)) close({ outcome: "expired" });
      }
    }
    this.#isLooking = false;
  }

  #remember(closed: AgentRequest): void {
    const { permission } = closed;
    // Leave out the details, which may be long.
    const brief = permission === null ? null : { kind: permission.kind };
    this.#closed.set(closed.id, { ...closed, permission: brief, question: null });
    const [oldest] = this.#closed.keys();
    if (this.#closed.size > MOST_CLOSED && oldest !== undefined) this.#closed.delete(oldest);
    this.#changed({ type: "request.closed", request: closed });
  }

  #changed(change: RequestChange): void {
    this.announce(change);
    for (const listener of [...this.#ownListeners]) listener(change);
  }

  /** A user's requests in a session: those that wait, and the most recently closed ones. */
  list(session: string, user: string): AgentRequest[] {
    const known = [...[...this.#waiting.values()].map(({ request }) => request), ...this.#closed.values()];
    return known.filter((each) => each.session === session && each.user === user);
  }

  /**
   * Answers a request.
   *
   * @throws FleetError `FLEET_REQUEST_NOT_FOUND` when this process does not have such a request of the user;
   * `FLEET_REQUEST_CLOSED` when the request no longer waits; `FLEET_USAGE_INVALID` when the answer does not fit the
   * request.
   */
  answer(session: string, user: string, id: string, answer: RequestAnswer): AgentRequest {
    const request = this.list(session, user).find((each) => each.id === id);
    if (request === undefined) throw requestNotFound(session, id);
    const verdict = verdictOf(request, answer);
    if (request.outcome !== null) throw requestClosed(id, request.outcome);
    this.#waiting.get(id)?.close(verdict);
    return { ...request, outcome: verdict.outcome };
  }

  /** Calls the listener when a request of this process changes. @returns a function that removes the listener */
  onOwn(listener: Listener): () => void {
    this.#ownListeners.add(listener);
    return () => void this.#ownListeners.delete(listener);
  }

  /**
   * Calls the listener when a request of this process or of another host changes. @returns a function that removes it
   */
  on(listener: Listener): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Reports a change, perhaps from another host, to the listeners that {@link on} added. */
  announce(change: RequestChange): void {
    for (const listener of [...this.#listeners]) listener(change);
  }
}

import { randomUUID } from "node:crypto";
import type { Clock } from "../../runtime/clock.js";
import { abortable, deadlineOn } from "../../runtime/deadline.js";
import { requestClosed, requestNotFound, verdictOf } from "./problems.js";
import type { AgentRequest, Asked, RequestAnswer, RequestChange, Verdict } from "./request.js";

/** How many closed requests stay known, so that a late answer gets a clear error. */
const MOST_CLOSED = 1_000;

/** A request that waits. `close` ends it, once. */
export interface WaitingRequest {
  readonly request: AgentRequest;
  /** Resolves at the end of the request. Never rejects. */
  readonly verdict: Promise<Verdict>;
  close(verdict: Verdict): void;
}

type Listener = (change: RequestChange) => void;

/**
 * The permissions and questions that the turns of this process ask. They live in memory, because they end with the process:
 * when its connection to a server ends, the runtime ends the turn (measured with 1.0.85).
 */
export class AgentRequests {
  readonly #waiting = new Map<string, WaitingRequest>();
  readonly #closed = new Map<string, AgentRequest>();
  readonly #listeners = new Set<Listener>();
  #share: Listener = () => undefined;
  readonly #answerMs: number;
  readonly #clock: Clock;

  /** @param answerMs how long a request waits for its answer, in milliseconds */
  constructor(answerMs: number, clock: Clock) {
    this.#answerMs = answerMs;
    this.#clock = clock;
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
    const now = Date.now();
    const request: AgentRequest = {
      id: randomUUID(),
      session,
      user,
      kind: asked.permission === null ? "question" : "permission",
      openedAt: new Date(now).toISOString(),
      expiresAt: new Date(now + this.#answerMs).toISOString(),
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
    return waiting;
  }

  async #expire({ verdict, close }: WaitingRequest, until: AbortSignal | undefined): Promise<void> {
    using limit = deadlineOn(this.#clock, this.#answerMs, until);
    await abortable(verdict, limit.signal).catch(() => close({ outcome: "expired" }));
  }

  #remember(closed: AgentRequest): void {
    this.#closed.set(closed.id, closed);
    const [oldest] = this.#closed.keys();
    if (this.#closed.size > MOST_CLOSED && oldest !== undefined) this.#closed.delete(oldest);
    this.#changed({ type: "request.closed", request: closed });
  }

  #changed(change: RequestChange): void {
    this.announce(change);
    this.#share(change);
  }

  /** The requests of one user in a session, those that wait and the last that have ended. */
  list(session: string, user: string): AgentRequest[] {
    const known = [...[...this.#waiting.values()].map(({ request }) => request), ...this.#closed.values()];
    return known.filter((each) => each.session === session && each.user === user);
  }

  /**
   * Answers a request.
   *
   * @throws FleetError `FLEET_REQUEST_NOT_FOUND` when this process knows no such request of the user; `FLEET_REQUEST_CLOSED` when
   * it no longer waits; `FLEET_USAGE_INVALID` when the answer does not fit it.
   */
  answer(session: string, user: string, id: string, answer: RequestAnswer): AgentRequest {
    const request = this.list(session, user).find((each) => each.id === id);
    if (request === undefined) throw requestNotFound(session, id);
    const verdict = verdictOf(request, answer);
    if (request.outcome !== null) throw requestClosed(id, request.outcome);
    this.#waiting.get(id)?.close(verdict);
    return { ...request, outcome: verdict.outcome };
  }

  /** Calls `share` at each change of this process, so that other hosts learn of it. */
  shareBy(share: Listener): void {
    this.#share = share;
  }

  /** Calls the listener at each change, of this process and of other hosts. @returns a function that removes it */
  on(listener: Listener): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Reports a change, which may be another host's, to the listeners of this process. */
  announce(change: RequestChange): void {
    for (const listener of [...this.#listeners]) listener(change);
  }
}

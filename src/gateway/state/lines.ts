import { isFleetError } from "../../errors.js";
import { RpcError } from "../../runtime/wire/rpc-client.js";
import { parse } from "../../runtime/wire/server-message.js";
import type { ClientRequest } from "../wire/client-message.js";

/** How long to wait before each new search for a session or user that has moved, in milliseconds. */
const LOOK_AGAIN_MS = [100, 1_000];

const MOVED = "FLEET_SESSION_MOVED";

/** A queue in the order in which the client sent its requests. An item that is put back gets its old position. */
export class Line<T extends { readonly place: number }> {
  readonly #items: T[] = [];

  get isEmpty(): boolean {
    return this.#items.length === 0;
  }

  /** Inserts an item behind those that the client sent before it. */
  insert(item: T): void {
    const behind = this.#items.findIndex(({ place }) => place > item.place);
    this.#items.splice(behind === -1 ? this.#items.length : behind, 0, item);
  }

  hasBefore({ place }: Pick<T, "place">): boolean {
    const [first] = this.#items;
    return first !== undefined && first.place < place;
  }

  take(): T | undefined {
    return this.#items.shift();
  }

  takeAll(): T[] {
    return this.#items.splice(0);
  }

  [Symbol.iterator](): Iterator<T> {
    return this.#items.values();
  }
}

/**
 * A queue between two parts of the door. One part puts work in, and the other takes it out. Only one call of `take` may wait
 * at a time.
 */
export class Mailbox<T> {
  readonly #items: T[] = [];
  #closed = false;
  #wake: (() => void) | undefined;

  put(item: T): void {
    this.#items.push(item);
    this.#wake?.();
  }

  /** Resolves with the next item; with undefined once the mailbox is empty and closed. */
  async take(): Promise<T | undefined> {
    while (this.#items.length === 0 && !this.#closed) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return this.#items.shift();
  }

  /** After this, `take` resolves with the items that are left, and then with undefined. */
  close(): void {
    this.#closed = true;
    this.#wake?.();
  }
}

/** A client's request, and its position in the line of its session. */
export interface Visit {
  readonly request: ClientRequest;
  readonly name: string;
  /** The request's position in the order in which the client's requests came. */
  readonly place: number;
  /** How many times the door has put the request back to look again for the host of its session or user. */
  looks: number;
  /** The earliest time to look for the host again, by `performance.now()`. */
  notBefore: number;
}

/** Keeps one client's requests in order. There is one line for each session, and one line for requests without a session. */
export class RequestLines {
  /** The names of new lines. The dispatcher takes each of them and serves the line until it is empty. */
  readonly unserved = new Mailbox<string>();
  readonly #looksAgain: boolean;
  readonly #visits = new WeakMap<ClientRequest, Visit>();
  readonly #lines = new Map<string, Line<Visit>>();
  #places = 0;

  /**
   * @param looksAgain whether to look again for the host of a session or user that has moved. False for a client that
   * another host relays, because that host looks again.
   */
  constructor({ looksAgain }: { looksAgain: boolean }) {
    this.#looksAgain = looksAgain;
  }

  join(request: ClientRequest): void {
    const { sessionId } = request.params;
    const place = this.#places++;
    // A new session without an id gets its own line, because no other request can be about it.
    const isAlone = request.method === "session.create" && typeof sessionId !== "string";
    const name = isAlone ? `new ${place}` : typeof sessionId === "string" ? sessionId : "";
    const visit = { request, name, place, looks: 0, notBefore: 0 };
    this.#visits.set(request, visit);
    this.#insert(visit);
  }

  placeOf(request: ClientRequest): number {
    return this.#visits.get(request)?.place ?? this.#places;
  }

  /** Takes the next request from a line. Removes the line if it is empty. */
  next(name: string): Visit | undefined {
    const next = this.#lines.get(name)?.take();
    if (next === undefined) this.#lines.delete(name);
    return next;
  }

  /** Whether an earlier request has come back to the line. If so, puts this request back behind the earlier one. */
  isOvertaking(request: ClientRequest): boolean {
    const visit = this.#visits.get(request);
    if (visit === undefined || this.#lines.get(visit.name)?.hasBefore(visit) !== true) return false;
    this.#insert(visit);
    return true;
  }

  /**
   * Puts a request back in its line because its session or user has moved to another host.
   *
   * @returns false after the last attempt, or if another host relays the client; the client then gets the error
   */
  lookAgain(request: ClientRequest): boolean {
    const visit = this.#visits.get(request);
    const pauseMs = LOOK_AGAIN_MS[visit?.looks ?? LOOK_AGAIN_MS.length];
    if (!this.#looksAgain || visit === undefined || pauseMs === undefined) return false;
    visit.looks++;
    visit.notBefore = performance.now() + pauseMs;
    this.#insert(visit);
    return true;
  }

  #insert(visit: Visit): void {
    const line = this.#lines.get(visit.name) ?? new Line<Visit>();
    line.insert(visit);
    if (this.#lines.has(visit.name)) return;
    this.#lines.set(visit.name, line);
    this.unserved.put(visit.name);
  }
}

/** Whether the answer of another front door reports that the session or user has moved. */
export function saysMoved({ failed, body }: { failed: boolean; body: Buffer }): boolean {
  if (!failed) return false;
  const { error } = parse(body) as { error?: { data?: { code?: unknown } } };
  return error?.data?.code === MOVED;
}

/** Whether an error, from here or from another front door, reports that the session or user has moved. */
export function isMoved(error: unknown): boolean {
  return isFleetError(error, MOVED) || (error instanceof RpcError && error.fleetCode === MOVED);
}

import { isFleetError } from "../../errors.js";
import { RpcError } from "../../runtime/wire/rpc-client.js";
import { parse } from "../../runtime/wire/server-message.js";
import type { ClientRequest } from "../wire/client-message.js";
import { Mailbox } from "./mailbox.js";

/** How long to wait before each new search for a session or user that has moved, in milliseconds. */
const LOOK_AGAIN_MS = [100, 1_000];

const MOVED = "FLEET_SESSION_MOVED";

/** Items in the order in which the client sent their requests, even if they come back. */
export class Line<T extends { readonly place: number }> {
  readonly #items: T[] = [];

  get isEmpty(): boolean {
    return this.#items.length === 0;
  }

  /** Inserts an item behind those that arrived before it. */
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

/** A request that waits in line with others for the same session. */
export interface Visit {
  readonly request: ClientRequest;
  readonly name: string;
  /** Its position in the order in which the client's requests came. */
  readonly place: number;
  /** How many times the fleet looked for its session or user again. */
  looks: number;
  /** The time before which the fleet does not look again, by `performance.now()`. */
  notBefore: number;
}

/** Keeps one client's requests in order, in a line for each session and one for requests without a session. */
export class RequestLines {
  /** Lines that nobody serves. */
  readonly unserved = new Mailbox<string>();
  readonly #looksAgain: boolean;
  readonly #visits = new WeakMap<ClientRequest, Visit>();
  readonly #lines = new Map<string, Line<Visit>>();
  #places = 0;

  /**
   * @param looksAgain whether to look again for a session or user that has moved. A client that another host relays gets
   * the error instead, and that host looks again.
   */
  constructor({ looksAgain }: { looksAgain: boolean }) {
    this.#looksAgain = looksAgain;
  }

  join(request: ClientRequest): void {
    const { sessionId } = request.params;
    const place = this.#places++;
    // A new session without an id gets its own line. It does not have to wait for other requests, and opening it may
    // take a while.
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

  /** Whether an earlier request has come back to the line. If so, puts this request back behind it. */
  isOvertaking(request: ClientRequest): boolean {
    const visit = this.#visits.get(request);
    if (visit === undefined || this.#lines.get(visit.name)?.hasBefore(visit) !== true) return false;
    this.#insert(visit);
    return true;
  }

  /**
   * Puts a request back because its session or user has moved to another host, where the fleet then looks for it.
   *
   * @returns false after the last attempt; the client then gets the error
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

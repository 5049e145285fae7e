import { isFleetError } from "../../base/errors.js";
import type { HostRecord } from "../../base/host.js";
import type { ServerRecord } from "../../base/server.js";
import { isAlive } from "../../runtime/process/process-table.js";
import { type RpcClient, RpcError } from "../../runtime/wire/rpc-client.js";
import { parse } from "../../runtime/wire/scan.js";
import type { Protocol } from "../policy/methods.js";
import type { ClientRequest, Params } from "../wire/client-message.js";

/** An open connection, the other end's answer to `connect`, and the protocol that the other end speaks. */
export interface OpenUpstream {
  readonly upstream: RpcClient;
  readonly greeting: Params;
  readonly protocol: Protocol;
}

interface AnyLink extends OpenUpstream {
  /** Identifies the link among those of its client: the server's id, or {@link peerLinkId}. */
  readonly id: string;
  /**
   * Whether the client may see every message of the link. True for the user's own server, and for another front door,
   * because that door has already removed what the client may not see.
   */
  readonly own: boolean;
}

/** One client's connection to one launch of a server of this host. */
export interface ServerLink extends AnyLink {
  readonly kind: "server";
  readonly server: ServerRecord;
}

/** One client's connection to the front door of another host. */
export interface PeerLink extends AnyLink {
  readonly kind: "peer";
  readonly host: HostRecord;
}

export type Link = ServerLink | PeerLink;

/** The id of the link to a host. No server has such an id, because servers' ids have no colon. */
export function peerLinkId({ name }: Pick<HostRecord, "name">): string {
  return `host:${name}`;
}

export function isPeerLinkId(linkId: string): boolean {
  return linkId.startsWith(peerLinkId({ name: "" }));
}

interface Opening {
  readonly link: Promise<Link>;
  readonly abort: AbortController;
}

/**
 * The connections of one client: to its home server, to other servers of this host that have its sessions, and to the
 * front doors of other hosts.
 */
export class Links {
  readonly #live = new Map<string, Link>();
  readonly #opening = new Map<string, Opening>();

  /** The link with that id, if its other end is alive as far as we know. */
  live(id: string): Link | undefined {
    return this.#live.get(id)?.kind === "peer" ? this.peer(id) : this.server(id);
  }

  /**
   * The connection to this server, if there is one and the server is alive. Checks the server's process, too, because
   * the process may have exited before our socket shows it, and anything that we send in between would be lost.
   */
  server(serverId: string): ServerLink | undefined {
    const link = this.connected(serverId);
    const process = link?.server.process;
    return process != null && isAlive(process) ? link : undefined;
  }

  /** The connection to this server, if there is one. For callers that check the process themselves. */
  connected(serverId: string): ServerLink | undefined {
    const link = this.#live.get(serverId);
    return link?.kind === "server" && !link.upstream.closed ? link : undefined;
  }

  peer(id: string): PeerLink | undefined {
    const link = this.#live.get(id);
    return link?.kind === "peer" && !link.upstream.closed ? link : undefined;
  }

  /** Returns a copy, because closing a link removes it from the map. */
  all(): Link[] {
    return [...this.#live.values()];
  }

  /** Whether the client has a connection to another host, or is opening one. */
  get hasPeers(): boolean {
    return [...this.#live.keys(), ...this.#opening.keys()].some(isPeerLinkId);
  }

  /** Opens a link once for all callers that need it at the same time. */
  async once(id: string, outer: AbortSignal, open: (signal: AbortSignal) => Promise<Link>): Promise<Link> {
    const known = this.#opening.get(id);
    if (known !== undefined) return await known.link;
    const abort = new AbortController();
    const onAbort = () => abort.abort(outer.reason);
    if (outer.aborted) onAbort();
    outer.addEventListener("abort", onAbort, { once: true });
    const link = open(abort.signal);
    this.#opening.set(id, { link, abort });
    try {
      return await link;
    } finally {
      outer.removeEventListener("abort", onAbort);
      this.#opening.delete(id);
    }
  }

  add(link: Link): void {
    this.#live.set(link.id, link);
  }

  /** Closes the link with this id, if it exists. */
  drop(id: string): void {
    this.#live.get(id)?.upstream.destroy();
  }

  forget(link: Link): void {
    if (this.#live.get(link.id) === link) this.#live.delete(link.id);
  }

  /** Disconnects from other hosts that are gone. @param there the ids of links to hosts that are not gone */
  hangUp(there: ReadonlySet<string>): void {
    for (const { kind, id, upstream } of this.all()) if (kind === "peer" && !there.has(id)) upstream.destroy();
    for (const [id, { abort }] of this.#opening) {
      if (isPeerLinkId(id) && !there.has(id)) abort.abort(new Error("The host is gone."));
    }
  }

  /** Disconnects from the servers of this host. They then cut this client's turns, and unload its sessions. */
  leaveServers(): void {
    for (const { kind, upstream } of this.all()) if (kind === "server") upstream.destroy();
  }

  /** Stops reading from the servers because the client is slow (false), or reads again (true). */
  setFlow(flowing: boolean): void {
    for (const { upstream } of this.all()) {
      if (flowing) upstream.resume();
      else upstream.pause();
    }
  }

  close(): void {
    for (const { upstream } of this.#live.values()) upstream.destroy();
    this.#live.clear();
  }
}

/** How long to wait before each new search for a session or user that has moved, in milliseconds. */
const LOOK_AGAIN_MS = [100, 1_000];

const MOVED = "FLEET_SESSION_MOVED";

/** A queue in the order in which the client sent its requests. An item that is put back gets its old position. */
export class OrderedQueue<T extends { readonly place: number }> {
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
 * A queue between two parts of the door. One part puts work in, and the other takes it out. Only one call of `take` may
 * wait at a time.
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
interface QueuedRequest {
  readonly request: ClientRequest;
  readonly name: string;
  /** The request's position in the order in which the client's requests came. */
  readonly place: number;
  /** How many times the door has put the request back to look again for the host of its session or user. */
  looks: number;
  /** The earliest time to look for the host again, by `performance.now()`. */
  notBefore: number;
}

/**
 * Keeps one client's requests in order. There is one line for each session, and one line for requests without a
 * session.
 */
export class RequestLines {
  /** The names of new lines. The dispatcher takes each of them and serves the line until it is empty. */
  readonly unserved = new Mailbox<string>();
  readonly #looksAgain: boolean;
  readonly #queued = new WeakMap<ClientRequest, QueuedRequest>();
  readonly #lines = new Map<string, OrderedQueue<QueuedRequest>>();
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
    const queued = { request, name, place, looks: 0, notBefore: 0 };
    this.#queued.set(request, queued);
    this.#insert(queued);
  }

  placeOf(request: ClientRequest): number {
    return this.#queued.get(request)?.place ?? this.#places;
  }

  /** Takes the next request from a line. Removes the line if it is empty. */
  next(name: string): QueuedRequest | undefined {
    const next = this.#lines.get(name)?.take();
    if (next === undefined) this.#lines.delete(name);
    return next;
  }

  /** Whether an earlier request has come back to the line. If so, puts this request back behind the earlier one. */
  isOvertaking(request: ClientRequest): boolean {
    const queued = this.#queued.get(request);
    if (queued === undefined || this.#lines.get(queued.name)?.hasBefore(queued) !== true) return false;
    this.#insert(queued);
    return true;
  }

  /**
   * Puts a request back in its line because its session or user has moved to another host.
   *
   * @returns false after the last attempt, or if another host relays the client; the client then gets the error
   */
  lookAgain(request: ClientRequest): boolean {
    const queued = this.#queued.get(request);
    const pauseMs = LOOK_AGAIN_MS[queued?.looks ?? LOOK_AGAIN_MS.length];
    if (!this.#looksAgain || queued === undefined || pauseMs === undefined) return false;
    queued.looks++;
    queued.notBefore = performance.now() + pauseMs;
    this.#insert(queued);
    return true;
  }

  #insert(queued: QueuedRequest): void {
    const line = this.#lines.get(queued.name) ?? new OrderedQueue<QueuedRequest>();
    line.insert(queued);
    if (this.#lines.has(queued.name)) return;
    this.#lines.set(queued.name, line);
    this.unserved.put(queued.name);
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

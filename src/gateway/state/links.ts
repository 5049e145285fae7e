import type { HostRecord } from "../../model/host.js";
import type { ServerRecord } from "../../model/server.js";
import { isAlive } from "../../runtime/process/process-table.js";
import type { RpcClient } from "../../runtime/wire/rpc-client.js";
import type { Protocol } from "../policy/protocols.js";
import type { Params } from "../wire/client-message.js";

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

import { FleetError } from "../../errors.js";
import type { HostRecord } from "../../model/host.js";
import type { ServerRecord } from "../../model/server.js";
import { provenEndpoint } from "../../runtime/process/probe.js";
import { isAlive } from "../../runtime/process/process-table.js";
import type { RpcListener } from "../../runtime/wire/rpc-client.js";
import { checkSameProtocol, type Protocol } from "../policy/protocols.js";
import { isPeerLinkId, type Link, type PeerLink, peerLinkId, type ServerLink } from "../state/links.js";
import type { Params } from "../wire/client-message.js";
import { type OpenUpstream, openUpstream } from "../wire/upstream.js";
import type { PeerDialer } from "./peers.js";

export interface LinksOptions {
  hello: Params;
  /** The protocol that the client speaks. */
  protocol: Protocol;
  ownServerId: string;
  /** Null if the client must not be relayed to other hosts. */
  peers: PeerDialer | null;
  /** Makes the listener of a link, before the link exists. Until then `link` returns undefined. */
  listen: (link: () => Link | undefined) => RpcListener;
}

interface Opening {
  readonly link: Promise<Link>;
  readonly abort: AbortController;
}

/**
 * The connections of one client: to its home, to the servers of sessions that are elsewhere on this host, and to the
 * front doors of other hosts in place of the servers there.
 */
export class Links {
  readonly #options: LinksOptions;
  readonly #opening = new Map<string, Opening>();
  readonly #live = new Map<string, Link>();
  #closed = false;

  constructor(options: LinksOptions) {
    this.#options = options;
  }

  /** The link with that id, if its other end is alive as far as we know. */
  live(id: string): Link | undefined {
    return this.#live.get(id)?.kind === "peer" ? this.#livePeer(id) : this.server(id);
  }

  /**
   * The connection to this server, if there is one and the server is alive. Checks the process, too: the kernel may know
   * about its exit before our socket does, and we would lose anything that we send in between.
   */
  server(serverId: string): ServerLink | undefined {
    const link = this.#live.get(serverId);
    if (link?.kind !== "server" || link.upstream.closed) return undefined;
    const { process } = link.server;
    return process !== null && isAlive(process) ? link : undefined;
  }

  /**
   * Connects to a running server.
   *
   * @throws FleetError `FLEET_SERVER_LOST` when the connection ends at once, `FLEET_PROTOCOL_UNSUPPORTED` when the client
   * and the server speak different versions, and as {@link openUpstream}.
   */
  async to(server: ServerRecord, signal: AbortSignal): Promise<ServerLink> {
    const live = this.server(server.id);
    if (live?.server.launchId === server.launchId) return live;
    this.#live.get(server.id)?.upstream.destroy();
    return (await this.#once(
      server.id,
      signal,
      async (opening) => await this.#toServer(server, opening),
    )) as ServerLink;
  }

  /**
   * Connects to the front door of another host.
   *
   * @throws FleetError `FLEET_SERVER_LOST` and `FLEET_PROTOCOL_UNSUPPORTED` as `to`, `FLEET_HOST_AWAY` when the host
   * cannot be reached, `FLEET_TOKEN_REFUSED` when the client's token has ended, `FLEET_INTERNAL` for a client that must
   * not be relayed; `RpcError` when the other front door refuses the client.
   */
  async toPeer(host: HostRecord, signal: AbortSignal): Promise<PeerLink> {
    const id = peerLinkId(host);
    const live = this.#livePeer(id);
    // A host that was started again may listen on another address.
    if (live?.host.door === host.door) return live;
    live?.upstream.destroy();
    return (await this.#once(id, signal, async (opening) => await this.#toHost(id, host, opening))) as PeerLink;
  }

  #livePeer(id: string): PeerLink | undefined {
    const link = this.#live.get(id);
    return link?.kind === "peer" && !link.upstream.closed ? link : undefined;
  }

  /** Opens a link once for all that need it at the same time. */
  async #once(id: string, outer: AbortSignal, open: (signal: AbortSignal) => Promise<Link>): Promise<Link> {
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

  async #toServer(server: ServerRecord, signal: AbortSignal): Promise<ServerLink> {
    const { hello, ownServerId } = this.#options;
    return await this.#keep(
      async (listener) => await openUpstream(provenEndpoint(server), { hello, listener }, signal),
      (opened): ServerLink => ({ kind: "server", id: server.id, server, own: server.id === ownServerId, ...opened }),
    );
  }

  async #toHost(id: string, host: HostRecord, signal: AbortSignal): Promise<PeerLink> {
    const { peers } = this.#options;
    if (peers === null)
      throw new FleetError("FLEET_INTERNAL", "A client that another host relayed to this one is never relayed again.");
    return await this.#keep(
      async (listener) => await peers.open(host, listener, signal),
      (opened): PeerLink => ({ kind: "peer", id, host, own: true, ...opened }),
    );
  }

  async #keep<T extends Link>(
    open: (listener: RpcListener) => Promise<OpenUpstream>,
    make: (opened: OpenUpstream) => T,
  ): Promise<T> {
    let link: T | undefined;
    const opened = await open(this.#options.listen(() => link));
    try {
      checkSameProtocol(this.#options.protocol, opened.protocol);
    } catch (error) {
      opened.upstream.destroy();
      throw error;
    }
    link = make(opened);
    if (this.#closed) opened.upstream.destroy(); // the client has gone while the link was being opened
    if (opened.upstream.closed) throw new FleetError("FLEET_SERVER_LOST", `The connection to ${link.id} ended.`);
    this.#live.set(link.id, link);
    return link;
  }

  all(): Link[] {
    return [...this.#live.values()];
  }

  /** Whether the client is connected to another host, or about to be. */
  get hasPeers(): boolean {
    return [...this.#live.keys(), ...this.#opening.keys()].some(isPeerLinkId);
  }

  /** Hangs up on hosts that have gone, because a host that falls silent does not close its connections. */
  hangUp(isThere: (linkId: string) => boolean): void {
    for (const { kind, id, upstream } of this.all()) if (kind === "peer" && !isThere(id)) upstream.destroy();
    for (const [id, { abort }] of this.#opening) {
      if (isPeerLinkId(id) && !isThere(id)) abort.abort(new Error("The host is gone."));
    }
  }

  forget(link: Link): void {
    if (this.#live.get(link.id) === link) this.#live.delete(link.id);
  }

  close(): void {
    this.#closed = true;
    for (const { upstream } of this.#live.values()) upstream.destroy();
    this.#live.clear();
  }
}

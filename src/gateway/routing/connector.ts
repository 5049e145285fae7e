import { FleetError } from "../../errors.js";
import type { HostRecord } from "../../model/host.js";
import { serverIdOf } from "../../model/ids.js";
import type { ServerRecord } from "../../model/server.js";
import { deadline } from "../../runtime/deadline.js";
import { provenEndpoint } from "../../runtime/process/probe.js";
import type { RpcListener } from "../../runtime/wire/rpc-client.js";
import { checkSameProtocol } from "../policy/protocols.js";
import type { ClientState } from "../state/client-state.js";
import { type Link, type PeerLink, peerLinkId, type ServerLink } from "../state/links.js";
import type { Params } from "../wire/client-message.js";
import { Incoming } from "./incoming.js";
import type { PeerDialer } from "./peer-dialer.js";
import { type OpenUpstream, openUpstream } from "./upstream.js";

/** How long a server may take to accept a connection, in milliseconds. */
const CONNECT_MS = 30_000;

/** Connects one client to servers of this host and to the front doors of other hosts. */
export class Connector {
  readonly #state: ClientState;
  readonly #hello: Params;
  readonly #peers: PeerDialer | null;
  readonly #ownServerId: string;

  /**
   * @param hello the client's parameters of `connect`, without `token` and `fleet`
   * @param peers null if the client must not be relayed to other hosts
   */
  constructor(state: ClientState, hello: Params, peers: PeerDialer | null) {
    this.#state = state;
    this.#hello = hello;
    this.#peers = peers;
    this.#ownServerId = serverIdOf(state.user);
  }

  /**
   * Connects to a running server.
   *
   * @throws FleetError `FLEET_SERVER_LOST` when the connection ends at once, `FLEET_PROTOCOL_UNSUPPORTED` when the client
   * and the server speak different versions, and as {@link openUpstream}.
   */
  async to(server: ServerRecord): Promise<ServerLink> {
    const { links, gone } = this.#state;
    const live = links.server(server.id);
    if (live?.server.launchId === server.launchId) return live;
    links.drop(server.id);
    using limit = deadline(CONNECT_MS, gone);
    return (await links.once(
      server.id,
      limit.signal,
      async (opening) => await this.#toServer(server, opening),
    )) as ServerLink;
  }

  /**
   * Connects to the front door of another host.
   *
   * @throws FleetError `FLEET_SERVER_LOST` and `FLEET_PROTOCOL_UNSUPPORTED` as {@link to}; `FLEET_HOST_AWAY` when the
   * host cannot be reached; `FLEET_TOKEN_REFUSED` when the client's token has expired; `FLEET_INTERNAL` when another
   * host relayed the client to this one; `RpcError` when the other front door refuses the client.
   */
  async toPeer(host: HostRecord, signal: AbortSignal): Promise<PeerLink> {
    const { links } = this.#state;
    const id = peerLinkId(host);
    const live = links.peer(id);
    // A host that was started again may listen on another address.
    if (live?.host.door === host.door) return live;
    live?.upstream.destroy();
    return (await links.once(id, signal, async (opening) => await this.#toHost(id, host, opening))) as PeerLink;
  }

  async #toServer(server: ServerRecord, signal: AbortSignal): Promise<ServerLink> {
    const own = server.id === this.#ownServerId;
    const dial = { hello: this.#hello, clock: this.#state.door.clock };
    return await this.#keep(
      async (listener) => await openUpstream(provenEndpoint(server), { ...dial, listener }, signal),
      (opened): ServerLink => ({ kind: "server", id: server.id, server, own, ...opened }),
    );
  }

  async #toHost(id: string, host: HostRecord, signal: AbortSignal): Promise<PeerLink> {
    const peers = this.#peers;
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
    const { links, protocol } = this.#state;
    const incoming = new Incoming(this.#state);
    const opened = await open(incoming);
    try {
      checkSameProtocol(protocol, opened.protocol);
    } catch (error) {
      opened.upstream.destroy();
      throw error;
    }
    const link = make(opened);
    incoming.link = link;
    if (links.closed) opened.upstream.destroy(); // the client has gone while the link was being opened
    if (opened.upstream.closed) throw new FleetError("FLEET_SERVER_LOST", `The connection to ${link.id} ended.`);
    links.add(link);
    return link;
  }
}

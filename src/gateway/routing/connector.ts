import { FleetError } from "../../errors.js";
import type { HostRecord } from "../../model/host.js";
import { serverIdOf } from "../../model/ids.js";
import type { ServerRecord } from "../../model/server.js";
import { deadline } from "../../runtime/clock.js";
import { provenEndpoint } from "../../runtime/process/probe.js";
import { checkSameProtocol } from "../policy/protocols.js";
import type { ClientState } from "../state/client-state.js";
import { type Link, type PeerLink, peerLinkId, type ServerLink } from "../state/links.js";
import type { Params } from "../wire/client-message.js";
import { Incoming } from "./incoming.js";
import type { PeerDialer } from "./peer-dialer.js";
import { openUpstream } from "./upstream.js";

/** How long a server may take to accept a connection and answer `connect`, in milliseconds. */
const CONNECT_MS = 30_000;

/** Connects one client to servers of this host and to the front doors of other hosts. */
export class Connector {
  readonly #state: ClientState;
  readonly #hello: Params;
  readonly #peers: PeerDialer | null;
  readonly #ownServerId: string;

  /**
   * @param hello the client's parameters of `connect`, without `token` and `fleet`
   * @param peers null if the door must not relay the client to other hosts
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
   * and the server speak different versions, and the errors of {@link openUpstream}.
   */
  async to(server: ServerRecord): Promise<ServerLink> {
    const { links, gone } = this.#state;
    const live = links.server(server.id);
    if (live?.server.launchId === server.launchId) return live;
    links.drop(server.id);
    using limit = deadline(CONNECT_MS, gone);
    const open = async (signal: AbortSignal) => await this.#toServer(server, signal);
    return (await links.once(server.id, limit.signal, open)) as ServerLink;
  }

  /**
   * Connects to the front door of another host.
   *
   * @throws FleetError `FLEET_SERVER_LOST` and `FLEET_PROTOCOL_UNSUPPORTED` as in {@link to}; `FLEET_HOST_AWAY` when the
   * host cannot be reached; `FLEET_TOKEN_REFUSED` when the client's token has expired; `FLEET_INTERNAL` when another host
   * relayed the client to this one; `RpcError` when the other front door refuses the client.
   */
  async toPeer(host: HostRecord, signal: AbortSignal): Promise<PeerLink> {
    const { links } = this.#state;
    const id = peerLinkId(host);
    const live = links.peer(id);
    // Compare the addresses, because a restarted host may listen on another address.
    if (live?.host.door === host.door) return live;
    live?.upstream.destroy();
    const open = async (opening: AbortSignal) => await this.#toHost(id, host, opening);
    return (await links.once(id, signal, open)) as PeerLink;
  }

  async #toServer(server: ServerRecord, signal: AbortSignal): Promise<Link> {
    const { id } = server;
    const incoming = new Incoming(this.#state);
    const dial = { hello: this.#hello, clock: this.#state.door.clock, listener: incoming };
    const opened = await openUpstream(provenEndpoint(server), dial, signal);
    return this.#keep(incoming, { kind: "server", id, server, own: id === this.#ownServerId, ...opened });
  }

  async #toHost(id: string, host: HostRecord, signal: AbortSignal): Promise<Link> {
    if (this.#peers === null)
      throw new FleetError("FLEET_INTERNAL", "A client that another host relayed to this one is never relayed again.");
    const incoming = new Incoming(this.#state);
    const opened = await this.#peers.open(host, incoming, signal);
    return this.#keep(incoming, { kind: "peer", id, host, own: true, ...opened });
  }

  #keep(incoming: Incoming, link: Link): Link {
    const { links, protocol, gone } = this.#state;
    const { upstream } = link;
    try {
      checkSameProtocol(protocol, link.protocol);
    } catch (error) {
      upstream.destroy();
      throw error;
    }
    incoming.link = link;
    if (gone.aborted) upstream.destroy(); // the client disconnected while the link was being opened
    if (upstream.closed) throw new FleetError("FLEET_SERVER_LOST", `The connection to ${link.id} ended.`);
    links.add(link);
    return link;
  }
}

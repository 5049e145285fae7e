import { deadline } from "../../base/clock.js";
import { FleetError } from "../../base/errors.js";
import type { HostRecord } from "../../base/host.js";
import { serverIdOf } from "../../base/ids.js";
import type { ServerRecord } from "../../base/server.js";
import { isHostName } from "../../config/rules.js";
import type { Config } from "../../config/schema.js";
import type { Identity } from "../../identity/identity.js";
import type { SignOn } from "../../identity/sign-on.js";
import { type PeerSettings, peerEndpoint } from "../../identity/tls/exposure.js";
import { issueRelayToken } from "../../identity/tokens.js";
import { provenEndpoint } from "../../runtime/process/probe.js";
import { type Endpoint, RpcClient, type RpcDial, RpcError, type RpcListener } from "../../runtime/wire/rpc-client.js";
import { hostAway } from "../../servers/directory.js";
import type { Store } from "../../store/store.js";
import { checkSameProtocol, serverProtocol } from "../policy/methods.js";
import type { ClientState } from "../state/client-state.js";
import { type Link, type OpenUpstream, type PeerLink, peerLinkId, type ServerLink } from "../state/links.js";
import type { Params } from "../wire/client-message.js";
import { AUTHENTICATION_FAILED, tokenEnded } from "../wire/refusals.js";
import { Incoming } from "./incoming.js";

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
   * @throws FleetError `FLEET_SERVER_LOST` when the connection ends at once, `FLEET_PROTOCOL_UNSUPPORTED` when the
   * client and the server speak different versions, and the errors of {@link openUpstream}.
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
   * @throws FleetError `FLEET_SERVER_LOST` and `FLEET_PROTOCOL_UNSUPPORTED` as in {@link to}; `FLEET_HOST_AWAY` when
   * the host cannot be reached; `FLEET_TOKEN_REFUSED` when the client's token has expired; `FLEET_INTERNAL` when
   * another host relayed the client to this one; `RpcError` when the other front door refuses the client.
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

/**
 * Opens one client's connection to a server or to another front door.
 *
 * @param endpoint a server whose identity was proved, with the server's connection token; or a front door, with the
 * client's token
 * @param dial how to connect. Its `hello` has the parameters of the client's own `connect`, without the client's token
 * @throws FleetError `FLEET_SERVER_UNREACHABLE`, `FLEET_RUNTIME_UNUSABLE`.
 */
export async function openUpstream(endpoint: Endpoint, dial: RpcDial, signal: AbortSignal): Promise<OpenUpstream> {
  const where = `${endpoint.address}:${endpoint.port}`;
  const { client, greeting } = await RpcClient.dial(endpoint, dial, signal).catch((cause: unknown): never => {
    const message = `The server at ${where} cannot be reached, or takes no more connections.`;
    throw new FleetError("FLEET_SERVER_UNREACHABLE", message, { cause });
  });
  try {
    return { upstream: client, greeting, protocol: serverProtocol(where, greeting.protocolVersion) };
  } catch (error) {
    client.destroy();
    throw error;
  }
}

/** How long another host may take to accept a connection, in milliseconds. */
const DIAL_MS = 2_000;
/** How long another front door may take to answer `connect`, in milliseconds. It may have to start a server first. */
const ANSWER_MS = 30_000;

/**
 * Connects one client to the front doors of other hosts. The `connect` that it sends names this host as the relaying
 * host. It does not show the client's own token, but one that is valid only for this connection. `#credential`
 * describes the only exception.
 */
export class PeerDialer {
  readonly #own: string;
  readonly #settings: PeerSettings;
  readonly #hello: Params;
  readonly #identity: Identity;
  readonly #signOn: SignOn;
  readonly #store: Store;
  readonly #provider: Config["provider"];

  /**
   * @param own the name of this host
   * @param settings this host's settings for connections to other hosts
   * @param hello the client's own parameters of `connect`, without its token
   */
  constructor(
    own: string,
    settings: PeerSettings,
    hello: Params,
    identity: Identity,
    { signOn, store, config }: { signOn: SignOn; store: Store; config: Pick<Config, "provider"> },
  ) {
    this.#own = own;
    this.#settings = settings;
    this.#hello = hello;
    this.#identity = identity;
    this.#signOn = signOn;
    this.#store = store;
    this.#provider = config.provider;
  }

  /**
   * Connects to the front door of `host`.
   *
   * @throws FleetError `FLEET_HOST_AWAY` when the host cannot be reached; `FLEET_TOKEN_REFUSED` when the client's token
   * is no longer valid; `FLEET_CONFIG_INVALID` when the files of `host.tls` cannot be used; `RpcError` when the other
   * front door refuses the client.
   */
  async open(host: HostRecord, listener: RpcListener, signal: AbortSignal): Promise<OpenUpstream> {
    // Check the client's token again, because it may have expired or been revoked since the client connected. The other
    // front door would refuse the connection, and would delay the refusal as it does for a guessed token.
    if (!(await this.#signOn.isStillGood(this.#identity))) throw tokenEnded();
    peerEndpoint(host, this.#settings, ""); // if the host cannot be reached, throws before a token is issued
    const { id, token } = await this.#credential(host);
    const endpoint = peerEndpoint(host, this.#settings, token);
    const hello = { ...this.#hello, fleet: { via: this.#own, hops: 1 } };
    using limit = deadline(ANSWER_MS, signal);
    try {
      return await openUpstream(endpoint, { hello, listener, connectMs: DIAL_MS }, limit.signal);
    } catch (error) {
      // The token may be unused, so delete it. If the deletion fails, the token expires after a minute.
      if (id !== null) await this.#store.tokens.delete(id).catch(() => "the error below explains more");
      const refusal = error instanceof Error ? error.cause : undefined;
      if (refusal instanceof RpcError && refusal.rpcCode === AUTHENTICATION_FAILED) throw tokenEnded();
      const isOfClient = refusal instanceof RpcError && refusal.fleetCode !== undefined;
      throw isOfClient && refusal.fleetCode !== "FLEET_POOL_DRAINING" ? refusal : hostAway(host.name, error);
    }
  }

  /**
   * The token to show at another front door. If the user signed on with a GitHub token and no `provider` is set, this
   * is that GitHub token, because the other host's servers run the user's sessions with it. Its `id` is then null.
   */
  async #credential(host: HostRecord): Promise<{ id: string | null; token: string }> {
    const token = this.#provider === null ? this.#signOn.gitHubTokenOf(this.#identity) : null;
    return token === null ? await issueRelayToken(this.#store, this.#identity, host.name) : { id: null, token };
  }
}

/**
 * Reads the `fleet` parameter of `connect`. In it, a front door that relays a client names its own host. Any client may
 * send this parameter without proof, because a relayed client has fewer rights.
 *
 * @returns the name of that host, for the log (`unknown` if the name is not valid); undefined if the client is not
 * relayed.
 */
export function relayedFrom(fleet: unknown): string | undefined {
  if (fleet === undefined) return undefined;
  const via = typeof fleet === "object" && fleet !== null && "via" in fleet ? fleet.via : undefined;
  return typeof via === "string" && isHostName(via) ? via : "unknown";
}

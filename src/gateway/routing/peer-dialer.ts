import { isHostName } from "../../config/rules.js";
import { hostAway } from "../../hosts/problems.js";
import type { Identity } from "../../identity/identity.js";
import type { SignOn } from "../../identity/sign-on.js";
import { type PeerSettings, peerEndpoint } from "../../identity/tls/peer.js";
import type { HostRecord } from "../../model/host.js";
import { deadline } from "../../runtime/deadline.js";
import { RpcError, type RpcListener } from "../../runtime/wire/rpc-client.js";
import type { OpenUpstream } from "../state/links.js";
import type { Params } from "../wire/client-message.js";
import { AUTHENTICATION_FAILED, tokenEnded } from "../wire/refusals.js";
import { openUpstream } from "./upstream.js";

/** How long another host may take to accept a connection, in milliseconds. */
const CONNECT_MS = 2_000;
/** How long another front door may take to answer `connect`, in milliseconds. It may have to start a server first. */
const ANSWER_MS = 30_000;

/**
 * Connects one client to the front doors of other hosts. In its `connect`, it names this host as the host that relays the
 * client. Only this object keeps the client's token, and only in memory, while the client is connected.
 */
export class PeerDialer {
  readonly #own: string;
  readonly #settings: PeerSettings;
  readonly #hello: Params;
  readonly #token: string;
  readonly #identity: Identity;
  readonly #signOn: SignOn;

  /**
   * @param own the name of this host
   * @param settings those of this host, for TLS
   * @param hello the client's own parameters of `connect`, without its token
   */
  constructor(
    own: string,
    settings: PeerSettings,
    hello: Params,
    token: string,
    { identity, signOn }: { identity: Identity; signOn: SignOn },
  ) {
    this.#own = own;
    this.#settings = settings;
    this.#hello = hello;
    this.#token = token;
    this.#identity = identity;
    this.#signOn = signOn;
  }

  /**
   * @throws FleetError `FLEET_HOST_AWAY`, `FLEET_TOKEN_REFUSED`; `RpcError` when the other front door refuses the client.
   */
  async open(host: HostRecord, listener: RpcListener, signal: AbortSignal): Promise<OpenUpstream> {
    const endpoint = peerEndpoint(host, this.#settings, this.#token);
    // Check the token again, because it may have expired or been revoked since the client connected. The other front
    // door would count it as a wrong token from this host, and delay its answer.
    if (!(await this.#signOn.isStillGood(this.#identity))) throw tokenEnded();
    const hello = { ...this.#hello, fleet: { via: this.#own, hops: 1 } };
    using limit = deadline(ANSWER_MS, signal);
    try {
      return await openUpstream(endpoint, { hello, listener, connectMs: CONNECT_MS }, limit.signal);
    } catch (error) {
      const refusal = error instanceof Error ? error.cause : undefined;
      if (refusal instanceof RpcError && refusal.rpcCode === AUTHENTICATION_FAILED) throw tokenEnded();
      throw refusal instanceof RpcError && refusal.fleetCode !== undefined ? refusal : hostAway(host.name, error);
    }
  }
}

/**
 * Reads the `fleet` parameter of `connect`. In it, a front door that relays a client names its own host. Any client may send
 * this parameter without proof, because a relayed client has fewer rights.
 *
 * @returns the name of that host, for the log; undefined if the client is not relayed.
 */
export function relayedFrom(fleet: unknown): string | undefined {
  if (fleet === undefined) return undefined;
  const via = typeof fleet === "object" && fleet !== null && "via" in fleet ? fleet.via : undefined;
  return typeof via === "string" && isHostName(via) ? via : "unknown";
}

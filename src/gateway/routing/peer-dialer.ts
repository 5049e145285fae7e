import { isHostName } from "../../config/rules.js";
import type { Config } from "../../config/schema.js";
import { hostAway } from "../../hosts/problems.js";
import type { Identity } from "../../identity/identity.js";
import type { SignOn } from "../../identity/sign-on.js";
import { type PeerSettings, peerEndpoint } from "../../identity/tls/peer.js";
import { issueRelayToken } from "../../identity/tokens.js";
import type { HostRecord } from "../../model/host.js";
import { deadline } from "../../runtime/clock.js";
import { RpcError, type RpcListener } from "../../runtime/wire/rpc-client.js";
import type { Store } from "../../store/ports.js";
import type { OpenUpstream } from "../state/links.js";
import type { Params } from "../wire/client-message.js";
import { AUTHENTICATION_FAILED, tokenEnded } from "../wire/refusals.js";
import { openUpstream } from "./upstream.js";

/** How long another host may take to accept a connection, in milliseconds. */
const CONNECT_MS = 2_000;
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
      return await openUpstream(endpoint, { hello, listener, connectMs: CONNECT_MS }, limit.signal);
    } catch (error) {
      // The token may be unused, so delete it. If the deletion fails, the token expires after a minute.
      if (id !== null) await this.#store.tokens.delete(id).catch(() => "the error below explains more");
      const refusal = error instanceof Error ? error.cause : undefined;
      if (refusal instanceof RpcError && refusal.rpcCode === AUTHENTICATION_FAILED) throw tokenEnded();
      const isOfClient = refusal instanceof RpcError && refusal.fleetCode !== undefined;
      throw isOfClient && refusal.fleetCode !== "FLEET_DOOR_DRAINING" ? refusal : hostAway(host.name, error);
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
 * Reads the `fleet` parameter of `connect`. In it, a front door that relays a client names its own host. Any client may send
 * this parameter without proof, because a relayed client has fewer rights.
 *
 * @returns the name of that host, for the log (`unknown` if the name is not valid); undefined if the client is not
 * relayed.
 */
export function relayedFrom(fleet: unknown): string | undefined {
  if (fleet === undefined) return undefined;
  const via = typeof fleet === "object" && fleet !== null && "via" in fleet ? fleet.via : undefined;
  return typeof via === "string" && isHostName(via) ? via : "unknown";
}

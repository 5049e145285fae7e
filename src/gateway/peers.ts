import { isHostName, parseAddress } from "../config/rules.js";
import { hostAway } from "../hosts/problems.js";
import { RpcError } from "../runtime/client/raw-connection.js";
import { deadline } from "../runtime/deadline.js";
import type { HostRecord } from "../store/store.js";
import type { Params } from "./client-message.js";
import { AUTHENTICATION_FAILED, tokenEnded } from "./refusals.js";
import { type OpenUpstream, Upstream, type UpstreamListener } from "./upstream.js";

/** How long another host may take to accept a connection, in milliseconds. */
const CONNECT_MS = 2_000;
/** How long its front door may take to answer `connect`: it may have to start a server for that. In milliseconds. */
const ANSWER_MS = 30_000;

/**
 * Opens connections to the front doors of other hosts for one client, and says there that the client was relayed. It alone
 * keeps the client's token, in memory and for the life of the client's connection.
 */
export class PeerDialer {
  readonly #own: string;
  readonly #hello: Params;
  readonly #token: string;
  readonly #isGood: () => Promise<boolean>;

  /**
   * @param hello what the client said of itself, without its token
   * @param isGood whether the token may still be used
   */
  constructor(own: string, hello: Params, token: string, isGood: () => Promise<boolean>) {
    this.#own = own;
    this.#hello = hello;
    this.#token = token;
    this.#isGood = isGood;
  }

  /**
   * @throws FleetError `FLEET_HOST_AWAY`, `FLEET_TOKEN_REFUSED`; `RpcError` with what the other front door refused the client
   * with.
   */
  async open(host: HostRecord, listener: UpstreamListener, signal: AbortSignal): Promise<OpenUpstream> {
    const address = host.door === null ? null : parseAddress(host.door);
    if (address === null) throw hostAway(host.name);
    // It may have ended since it was shown here. The other door would count it as a wrong one, and answer late.
    if (!(await this.#isGood())) throw tokenEnded();
    const endpoint = { address: address.host, port: address.port, token: this.#token };
    const hello = { ...this.#hello, fleet: { via: this.#own, hops: 1 } };
    using limit = deadline(ANSWER_MS, signal);
    try {
      return await Upstream.open(endpoint, hello, listener, limit.signal, CONNECT_MS);
    } catch (error) {
      const refusal = error instanceof Error ? error.cause : undefined;
      if (refusal instanceof RpcError && refusal.rpcCode === AUTHENTICATION_FAILED) throw tokenEnded();
      throw refusal instanceof RpcError && refusal.fleetCode !== undefined ? refusal : hostAway(host.name, error);
    }
  }
}

/**
 * Whether a client says in its `connect` that it came from the front door of another host. Nobody has to prove that: who
 * says so gets less.
 *
 * @returns the name of that host, for the log; undefined: it did not.
 */
export function relayedFrom(fleet: unknown): string | undefined {
  if (fleet === undefined) return undefined;
  const via = typeof fleet === "object" && fleet !== null && "via" in fleet ? fleet.via : undefined;
  return typeof via === "string" && isHostName(via) ? via : "unknown";
}

import type { HostRecord } from "../../model/host.js";
import type { ServerRecord } from "../../model/server.js";
import type { RpcClient } from "../../runtime/wire/rpc-client.js";
import type { Protocol } from "../policy/protocols.js";
import type { Params } from "../wire/client-message.js";

interface AnyLink {
  /** Identifies the link among those of its client: the server's id, or {@link peerLinkId}. */
  readonly id: string;
  readonly upstream: RpcClient;
  /**
   * Whether the client may see everything that comes over the link. It may if the link leads to its own server, or to
   * another front door, which has already removed the rest.
   */
  readonly own: boolean;
  /** The other end's answer to `connect`. */
  readonly greeting: Params;
  /** The protocol that the other end speaks. */
  readonly protocol: Protocol;
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

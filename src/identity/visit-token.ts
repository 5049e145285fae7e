import type { TokenRecord } from "../model/token.js";
import type { Store } from "../store/ports.js";
import { issueToken } from "./tokens.js";

/** The longest connection of a process to another host's front door, in milliseconds. */
const VISIT_MS = 24 * 3_600_000;

export interface Visit {
  /**
   * The lease that covers the user's turns in a session. This process has the lease, or runs under a
   * `copilotfleet lock` that has the lease.
   */
  lease?: TokenRecord["lease"];
  /** The id of the credential that the user showed to the process. */
  tokenId?: string | null | undefined;
}

/**
 * Makes a token with which a process of this host can connect to the front door of host `to` as the user, once within a
 * minute. The connection may last until the token expires after a day. The token expires because the token of a killed
 * process would otherwise stay valid forever.
 */
export async function issueVisitToken(store: Store, user: string, to: string, { lease, tokenId = null }: Visit) {
  const covered = lease === undefined ? {} : { lease };
  return await issueToken(store, user, VISIT_MS, { door: to, passing: true, shown: tokenId, ...covered });
}

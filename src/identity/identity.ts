/**
 * The actions that a client may take. `use` and `admin` include `read`; only `admin` allows actions on other users. `issue`
 * makes tokens for all users, so its holder can become any of them.
 */
export const SCOPES = ["use", "read", "admin", "issue"] as const;
export type Scope = (typeof SCOPES)[number];

/**
 * The user behind a client, and the actions that the client may take. An entry point creates this value once, when a
 * connection or a request comes in, and passes it along.
 */
export interface Identity {
  user: string;
  scopes: readonly Scope[];
  groups: readonly string[];
  /** Identifies the credential in logs, and for its revocation. It is not a secret. */
  tokenId: string;
  /**
   * If another process of the fleet acts for the user: the id of the credential that the user showed to that process,
   * or null if the user showed none. Undefined if the user showed `tokenId`.
   */
  shownTokenId?: string | null | undefined;
  /** When the credential expires, in ISO 8601 and UTC; null: it is valid until it is revoked. */
  expiresAt: string | null;
  /**
   * Where the identity comes from: a token of the fleet, a JSON Web Token of an identity provider, or a GitHub token.
   */
  via: "token" | "jwt" | "github";
  /** The only session that the client may use. Undefined: all sessions of the user. */
  sessionId?: string | undefined;
  /**
   * The lease that covers the user's turns in a session. The process that issued the credential has shown the lease's
   * token to the store.
   */
  lease?: { sessionId: string; fence: number } | undefined;
}

/** Another host of the fleet, which connects to the front door of this one. */
export interface HostIdentity {
  host: string;
  tokenId: string;
  /** The only host whose front door accepts the token. */
  door: string;
}

export function isHost(identity: Identity | HostIdentity): identity is HostIdentity {
  return "host" in identity;
}

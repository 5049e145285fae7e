import { FleetError, quote } from "../base/errors.js";
import { relationOf, type SessionRecord } from "../base/session.js";

/**
 * The actions that a client may take. `use` and `admin` include `read`; only `admin` allows actions on other users.
 * `issue` makes tokens for all users, so its holder can become any of them.
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

/**
 * The kinds of actions, by what they change and how far they reach. Each method of the front door, each
 * route of the HTTP API and each command belongs to one kind.
 *
 * | action    | meaning                                                                                              |
 * | --------- | ---------------------------------------------------------------------------------------------------- |
 * | `read`    | changes nothing and begins no turn; concerns one session, or no data of the user                     |
 * | `use`     | everything else in one session                                                                       |
 * | `readAll` | changes nothing and begins no turn, but shows all sessions, or the home of the user's server         |
 * | `useAll`  | creates or deletes a session, changes its members or several sessions, or reaches the files, programs |
 * |           | or settings of the user's server                                                                     |
 * | `manage`  | concerns other users, servers, hosts or tokens, but never reads or continues a conversation          |
 * | `issue`   | makes a token for any user                                                                           |
 */
export type Action = keyof typeof ACTIONS;

const ACTIONS = {
  read: { scope: "read", reachesAll: false },
  use: { scope: "use", reachesAll: false },
  readAll: { scope: "read", reachesAll: true },
  useAll: { scope: "use", reachesAll: true },
  manage: { scope: "admin", reachesAll: true },
  issue: { scope: "issue", reachesAll: true },
} as const satisfies Record<string, { scope: Scope; reachesAll: boolean }>;

/** For each scope, the scopes that include it. */
const GRANTED_BY: Readonly<Record<Scope, readonly Scope[]>> = {
  read: ["read", "use", "admin"],
  use: ["use", "admin"],
  admin: ["admin"],
  issue: ["issue"],
};

/**
 * How a user relates to the session that an action is about. `foreign`: the user may not use the session, or it does
 * not exist. `none`: the action names no session.
 */
export type Relation = "own" | "member" | "foreign" | "none";

/**
 * `hidden`: the session must look as if it did not exist. `scope`: the identity lacks a scope. `session`: the identity
 * may use only one session, and the action reaches more.
 */
export type Decision = "allowed" | "hidden" | "scope" | "session";

type Holder = Pick<Identity, "user" | "scopes" | "sessionId">;

/**
 * Decides whether an identity may take an action. Every entry point uses this function. No scope gives access to
 * another user's conversation, but a token that the scope `issue` makes for that user does.
 */
export function decide(holder: Holder, action: Action, relation: Relation): Decision {
  const { scope, reachesAll } = ACTIONS[action];
  // Check the scope first, so that the answer to a missing scope does not show whether a session exists.
  if (!holder.scopes.some((held) => GRANTED_BY[scope].includes(held))) return "scope";
  if (holder.sessionId !== undefined && reachesAll) return "session";
  return relation === "foreign" && action !== "manage" ? "hidden" : "allowed";
}

/**
 * How an identity relates to a session. To an identity that is bound to one session, every other session is foreign.
 */
export function relationTo({ user, sessionId }: Holder, record: SessionRecord | null): Exclude<Relation, "none"> {
  if (record === null || (sessionId !== undefined && record.id !== sessionId)) return "foreign";
  return relationOf(record, user);
}

/**
 * Whether {@link decide} allows an action.
 *
 * @param name the method or route, for the error
 * @returns false if the session must look as if it did not exist
 * @throws FleetError `FLEET_SCOPE_MISSING`.
 */
export function permit(holder: Holder, action: Action, relation: Relation, name: string): boolean {
  const decision = decide(holder, action, relation);
  if (decision === "scope" || decision === "session") throw notPermitted(holder, action, decision, name);
  return decision === "allowed";
}

function notPermitted(
  { scopes, sessionId }: Holder,
  action: Action,
  lacks: "scope" | "session",
  name: string,
): FleetError {
  const needed = ACTIONS[action].scope;
  const held = scopes.length === 0 ? "none" : scopes.map((scope) => quote(scope)).join(" and ");
  const message =
    lacks === "scope"
      ? `${quote(name)} needs the scope ${quote(needed)}. The scopes of this credential: ${held}.`
      : `${quote(name)} reaches more than session ${quote(sessionId)}, and this credential is valid only for that session.`;
  return new FleetError("FLEET_SCOPE_MISSING", message);
}

/** How many entries of one kind are remembered, because strangers can cause any number of them. */
const MOST_REMEMBERED = 10_000;

/** Stores a value as the newest entry of a map, and drops the oldest entry of a full map. */
export function remember<T>(map: Map<string, T>, key: string, value: T): void {
  map.delete(key);
  map.set(key, value);
  const [oldest] = map.keys();
  if (map.size > MOST_REMEMBERED && oldest !== undefined) map.delete(oldest);
}

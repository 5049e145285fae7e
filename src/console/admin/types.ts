/** The answers of the API's routes for operators. `/openapi.json` describes them in full. */

import type { Scope, Session } from "../api/types.js";

export interface Server {
  id: string;
  user: string | null;
  isolation: "per-user" | "shared";
  hostName: string | null;
  away: boolean;
  url: string | null;
  pid: number | null;
  state: string;
  failure: string | null;
  startedAt: string | null;
  memoryBytes: number | null;
  sessions: number | null;
  activeSessions: number;
  version: string | null;
  sandbox: { mode: string; not: readonly string[] };
  turns: number | null;
  latencyMs: number | null;
}

export interface Servers {
  servers: readonly Server[];
  pool: { state: "open" | "closed"; reason: string | null };
}

export interface Host {
  name: string;
  state: string;
  heartbeatAgeMs: number | null;
  door: string | null;
  startedAt: string | null;
  servers: number;
  sessions: number;
  memoryBytes: number;
}

export interface Lease {
  holder: string;
  fence: number;
  acquiredAt: string;
  expiresAt: string;
}

export interface AnySession extends Session {
  serverId: string;
  host: string | null;
  lease: Lease | null;
}

export interface Token {
  id: string;
  user: string;
  expiresAt: string | null;
  scopes: readonly Scope[];
  sessionId: string | null;
  label: string | null;
  createdAt: string;
  expired: boolean;
  lastUsedAt: string | null;
}

export interface User {
  user: string;
  sessions: number;
  servers: number;
  tokens: number;
  suspended: { since: string; reason: string | null } | null;
}

/** The outcome of a purge. */
export interface Receipt {
  user: string;
  /** The parts that could not be erased, and the reasons. */
  remains: readonly { host: string | null; what: string; why: string }[];
}

export interface IssuedToken extends Pick<Token, "id" | "user" | "expiresAt" | "scopes" | "sessionId"> {
  token: string;
}

export interface Stopped {
  id: string;
  outcome: "drained" | "killed" | "already-stopped";
  cut: readonly string[];
}

/** The name of a server in the API, which is unique even if several hosts have a server with this id. */
export function referenceOf({ id, hostName }: Pick<Server, "id" | "hostName">): string {
  return hostName === null ? id : `${id}@${hostName}`;
}

import type { Claim, ProcessIdentity } from "./process.js";

export type Isolation = "per-user" | "shared";

export const SERVER_STATES = ["starting", "ready", "unhealthy", "draining", "stopped", "failed"] as const;
export type ServerState = (typeof SERVER_STATES)[number];

/** Where a token comes from. The token itself is never recorded. */
export type TokenSource =
  | { from: "env"; name: string }
  | { from: "file"; path: string }
  | { from: "command"; command: string }
  /** A program passed it to the library in memory. Only that program can restart the server. */
  | { from: "caller" };

export interface ServerRecord {
  id: string;
  /** The owner, or null for a shared server. */
  user: string | null;
  isolation: Isolation;
  state: ServerState;
  /** ISO 8601, UTC. */
  createdAt: string;
  /** When the running process was launched; null when there is none. */
  startedAt: string | null;
  address: string;
  /** The port that is reserved for this server; null when it needs none. */
  port: number | null;
  /** The port that it listened on last. `restart` uses it again if it is free. */
  lastPort: number | null;
  /** Names one launch; the process carries it in its environment (`COPILOTFLEET_LAUNCH_ID`). */
  launchId: string | null;
  process: ProcessIdentity | null;
  /** The size of its log in bytes when the launch began. Absent: not known. */
  logStart?: number;
  /** The process that moves this server to its next state. If that process died, any command may repair the server. */
  claim: Claim | null;
  /** Absolute path of its `COPILOT_HOME`. */
  home: string;
  /** Absolute path of its working folder. */
  cwd: string;
  token: TokenSource | null;
  runtimePath: string;
  /** The version that the server reported; null before its first answer. */
  version: string | null;
  /** Why it is `failed` or `unhealthy`; null in other states. */
  failure: string | null;
  /** Whether the server should run. Absent in records of earlier versions and until the server has run once. */
  desired?: "running" | "stopped";
  /** How many times in a row it exited by itself or failed to start, without a healthy period in between. */
  crashes?: number;
  /** The process that will take over from this one, on the same home. */
  replacement?: Replacement | null;
}

/** A process that was started beside the running one. Once the running one is drained, this one becomes the server. */
export interface Replacement {
  launchId: string;
  port: number;
  /** Null until the process has answered. */
  process: ProcessIdentity | null;
  /** The process that does the replacement. If it died before it finished, the replacement is ended or takes over. */
  claim: Claim;
  startedAt: string;
  /** As in {@link ServerRecord}. */
  logStart?: number;
}

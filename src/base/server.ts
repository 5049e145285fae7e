import type { SandboxReport } from "./sandbox.js";

export type Isolation = "per-user" | "shared";

export const SERVER_STATES = ["starting", "ready", "unhealthy", "draining", "stopped", "failed"] as const;
export type ServerState = (typeof SERVER_STATES)[number];

/** A source of a token that the fleet can read. */
export type NamedSource =
  | { from: "env"; name: string }
  | { from: "file"; path: string }
  | { from: "command"; command: string };

/** Where a token comes from. The token itself is never recorded. */
export type TokenSource =
  | NamedSource
  /** The GitHub App of `auth.githubApp`. */
  | { from: "app" }
  /** A program passed the token to the library in memory. Only that program can restart the server. */
  | { from: "caller" };

/**
 * The kind of a source. A record never names the source itself, because others may be able to write records: see
 * servers/start.ts.
 */
export type RecordedSource = Pick<TokenSource, "from">;

export interface ServerRecord {
  id: string;
  /** The owner, or null for a shared server. */
  user: string | null;
  isolation: Isolation;
  state: ServerState;
  /** ISO 8601, UTC. */
  createdAt: string;
  /** When the running process was launched; null if no process runs. */
  startedAt: string | null;
  address: string;
  /** The port that is reserved for this server; null if it needs no port. */
  port: number | null;
  /** The port that the server listened on last. `restart` uses this port again if it is free. */
  lastPort: number | null;
  /** The id of the current launch. The process has it in its environment (`COPILOTFLEET_LAUNCH_ID`). */
  launchId: string | null;
  process: ProcessIdentity | null;
  /**
   * The process that a command was about to end when it set `process` to null. If that command dies, the command that
   * finishes its work finds the process here.
   */
  ending?: ProcessIdentity;
  /** The size of the server's log in bytes when the launch began. Absent if it is not known. */
  logStart?: number;
  /** Whether the process sends without Nagle's delay, see `native/nodelay.c`. */
  noDelay?: boolean;
  /** The process that moves this server to its next state. If that process died, any command may repair the server. */
  claim: Claim | null;
  /** Absolute path of its `COPILOT_HOME`. */
  home: string;
  /** Absolute path of its working folder. */
  cwd: string;
  /** The kind of the token source that was given at the server's start. Null: `auth` of the configuration, if set. */
  token: RecordedSource | null;
  runtimePath: string;
  /** The sandbox of the last start. Absent until then. */
  sandbox?: SandboxReport;
  /** The version that the server reported; null before its first answer. */
  version: string | null;
  /** Why the server is `failed` or `unhealthy`; null in other states. */
  failure: string | null;
  /** Whether the server should run. Absent until the server has run once. */
  desired?: "running" | "stopped";
  /** How many times in a row the server exited by itself or failed to start, without a healthy period in between. */
  crashes?: number;
  /** The process that will replace the running process and then use the same home. */
  replacement?: Replacement | null;
}

/**
 * A new process beside the server's running process. Once the running process is drained, the new one takes its place.
 */
export interface Replacement {
  launchId: string;
  port: number;
  /** Null until the process has answered. */
  process: ProcessIdentity | null;
  /**
   * The process of the command that makes the replacement. If that command died before it finished, the next repair
   * either makes the new process the server, or ends it.
   */
  claim: Claim;
  startedAt: string;
  /** As in {@link ServerRecord}. */
  logStart?: number;
  sandbox?: SandboxReport;
}

/**
 * Identifies a process beyond its PID. PIDs are reused, but within one boot and one PID namespace no two processes have
 * the same PID and start time. `base/system/` reads these facts.
 */
export interface ProcessIdentity {
  host: string;
  bootId: string;
  pidNamespace: string;
  pid: number;
  /** When the process started: clock ticks after boot. Where only `ps` reports it, the text of its column `lstart`. */
  startTicks: string;
  /** The PID of the process in its own PID namespace. Absent if that namespace is `pidNamespace`. */
  innerPid?: number;
  /** The process that passes connections to the identified process, if that one has its own network namespace. */
  bridge?: Pick<ProcessIdentity, "pid" | "startTicks">;
}

/** The PID of a process, and its PID in its own PID namespace if the two differ. */
export type OwnView = Pick<ProcessIdentity, "pid" | "innerPid">;

/** The process that is changing the state of a server. `move` names that change. */
export interface Claim extends ProcessIdentity {
  move?: string;
}

/** Every server has this variable in its environment. It names the launch that started the server. */
export const LAUNCH_VARIABLE = "COPILOTFLEET_LAUNCH_ID";

/** The version of the recorded shapes below. The fleet refuses a store that a newer version wrote. */
export const SCHEMA = 2;

export interface Registry {
  servers: Record<string, ServerRecord>;
  /** How many placements `round-robin` has made so far. Absent if it has made none. */
  placed?: number;
  /** The supervisors of the hosts. An entry whose process has died counts as absent. */
  supervisors?: SupervisorRecord[];
  /** When `drain` closed the pool (ISO 8601, UTC). Absent if the pool is open. */
  drainedAt?: string;
}

export interface SupervisorRecord {
  process: ProcessIdentity;
  state: "serving" | "draining";
  /** ISO 8601, UTC. */
  startedAt: string;
  /** The version of copilotfleet that it runs. */
  version?: string;
  /** `host:port` of the supervisor's metrics and health endpoints; null if it has none. */
  metrics: string | null;
  /** `host:port` of the supervisor's front door; absent or null if it has none. */
  door?: string | null;
  /** The URL of the supervisor's HTTP API; absent or null if it has none. */
  http?: string | null;
}

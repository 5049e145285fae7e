import type { Duration } from "./config/duration.js";
import type { PartialConfig } from "./config/load.js";
import type { Address } from "./config/rules.js";
import type { DoorListeners } from "./gateway/context.js";
import type { RebalancePlan } from "./hosts/rebalance.js";
import type { PoolState } from "./pool/admission.js";
import type { Strategy } from "./pool/pool.js";
import type { ServerView } from "./pool/server.js";
import type { TurnReply } from "./runtime/client/turn.js";
import type { InheritedListener } from "./runtime/listen.js";
import type { ServeLog } from "./serve/context.js";
import type { TurnLease } from "./sessions/lease-seen.js";
import type { LeaseWait } from "./sessions/leases.js";
import type { Released } from "./sessions/release.js";
import type { SessionOptions } from "./sessions/session-config.js";
import type { SessionView } from "./sessions/view.js";
import type { Isolation, TokenSource } from "./store/store.js";

export interface FleetOptions {
  /** Settings that win over the environment and the files, in the form of a configuration file. */
  config?: PartialConfig;
  /** The environment to read settings and tokens from, and to pass on to servers. Default: `process.env`. */
  env?: NodeJS.ProcessEnv;
  /**
   * Where to look upward for `.copilotfleet.json`. Default: the working folder. Keys of it that name programs, variables,
   * addresses or stores need the user's trust (`copilotfleet trust`).
   */
  cwd?: string;
  /** A configuration file to read instead of that one. All of its keys count. */
  configFile?: string;
}

export interface ConnectInfo {
  /** `host:port`, as the SDK's `RuntimeConnection.forUri` takes it. */
  url: string;
  /** The connection token of the user's server: whoever has it is that user. */
  token: string;
  user: string;
  serverId: string;
}

/** Where a user's next session goes. */
export interface RouteView {
  user: string;
  isolation: Isolation;
  /** Null where there is nothing to choose: every user has a server. */
  strategy: Strategy | null;
  /** The host that the user goes to; null where the store is one host's alone. */
  host: string | null;
  serverId: string;
  reason: string;
  /** The server as it is now; null if it was never started. */
  server: ServerView | null;
  /** Of that host: a closed pool starts no server and takes no turn. */
  pool: PoolState;
}

export interface CreateSessionOptions extends SessionOptions {
  user: string;
  /** Left out: a random id, behind the purpose if there is one. */
  sessionId?: string;
  purpose?: string;
  /** After how long without use gc may delete it, such as `24h`. Default: `session.ttl` of the configuration. */
  ttl?: Duration;
  /** Other users who may use it too, each turn under a lease. Left out: it is private; empty: shared with nobody yet. */
  members?: readonly string[];
  /** Deleted, on disk too, when it is left or the fleet is closed; after a crash by gc. */
  ephemeral?: boolean;
  /** How long to wait for room in the server's memory (`session.maxActive`). Default: `30s`. */
  wait?: Duration;
  /** @deprecated The same as `wait`, in milliseconds. */
  waitMs?: number;
  signal?: AbortSignal;
}

export interface ResumeSessionOptions extends SessionOptions {
  user: string;
  /** How long to wait for room in the server's memory (`session.maxActive`). Default: `30s`. */
  wait?: Duration;
  /** @deprecated The same as `wait`, in milliseconds. */
  waitMs?: number;
  signal?: AbortSignal;
}

export interface SendOptions {
  /** How long the turn may take until it is given up and aborted. Default: forever. */
  timeout?: Duration;
  /** @deprecated The same as `timeout`, in milliseconds. */
  timeoutMs?: number;
  /** How long to wait for a lease that somebody else holds. Default: `30s`. */
  wait?: Duration;
  /** @deprecated The same as `wait`, in milliseconds. */
  waitMs?: number;
  /** A lease on the session that the caller holds; it is checked right before the prompt goes out. */
  lease?: TurnLease;
  /** Called once if the wait for a lease takes longer than a second. */
  onWait?: (wait: LeaseWait) => void;
  /** Called with each piece of the reply as it arrives. The reply itself can be iterated for the same. */
  onDelta?: (text: string) => void;
  /** Gives up and aborts the turn. */
  signal?: AbortSignal;
}

export interface ExchangeOptions extends SendOptions {
  user: string;
  /** Further settings for the SDK's `resumeSession`. */
  session?: SessionOptions;
}

/** The reply of a turn, and the session after it. */
export interface Exchange extends TurnReply {
  session: SessionView;
  /** @deprecated The reply's `text` and `event` are here, beside it. */
  reply: TurnReply;
}

export interface SpawnRequest {
  /** Where the server's GitHub token comes from. Default: as recorded, or `auth` of the configuration. */
  token?: TokenSource;
  cwd?: string;
  /** How long the server may take to answer. Default: `30s`. */
  wait?: Duration;
  /** @deprecated The same as `wait`, in milliseconds. */
  waitMs?: number;
}

export interface StopRequest {
  /** How long turns in flight may take to end. Default: `drain.timeout` of the configuration. */
  drainTimeout?: Duration;
  /** @deprecated The same as `drainTimeout`, in milliseconds. */
  drainTimeoutMs?: number;
  /** Kill at once. */
  force?: boolean;
  signal?: AbortSignal;
}

export interface RollingRequest extends Omit<StopRequest, "force"> {
  /** At most so many servers are without a process that admits turns at any moment. Default: 1. */
  maxUnavailable?: number;
}

export interface RebalanceRequest {
  /** How long to wait for the sessions of one user to be between turns. Default: `drain.timeout`. */
  wait?: Duration;
  /** @deprecated The same as `wait`, in milliseconds. */
  waitMs?: number;
}

/** A user who was moved, and what became of the user's sessions on the host before. */
export interface MovedUser extends Released {
  user: string;
  from: string;
  to: string;
  /** Why the sessions there could not be let go; null: they could, or say themselves why they stay. */
  failure: string | null;
}

export interface Rebalanced extends Pick<RebalancePlan, "stays"> {
  moved: MovedUser[];
}

export interface DrainRequest extends StopRequest {
  /** @deprecated The same as `drainTimeout`. */
  timeout?: Duration;
}

export interface SuperviseOptions {
  /** Called with each event of the supervisor's life. */
  log: ServeLog;
  /** Where the front door listens, as in {@link OpenDoorOptions}. Default: `serve.listen` of the configuration. */
  listen?: string | Address | InheritedListener;
  /** Gives up the start. */
  signal?: AbortSignal;
}

export interface OpenDoorOptions extends DoorListeners {
  /**
   * An address such as "127.0.0.1:4300", port 0 for any free one, or an inherited descriptor. Default: `serve.listen` of the
   * configuration.
   */
  listen?: string | Address | InheritedListener;
  /** Gives up the wait for the address. */
  signal?: AbortSignal;
}

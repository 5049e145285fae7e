import type { MessageOptions, SessionEvent } from "@github/copilot-sdk";
import type { Via } from "../base/event.js";
import type { OnProgress } from "../base/progress.js";
import type { Isolation, ServerState, TokenSource } from "../base/server.js";
import type { SessionState, TurnUsage } from "../base/session.js";
import type { Duration, Moment } from "../base/values/measures.js";
import type { PartialConfig } from "../config/load/load.js";
import type { Address } from "../config/rules.js";
import type { DoorListeners } from "../door/state/report.js";
import type { TurnReply } from "../runtime/client/turn.js";
import type { TranscriptEntry } from "../runtime/history/transcript.js";
import type { InheritedListener } from "../runtime/launch/listen.js";
import type { ServeLog } from "../serve/context.js";
import type { Probes } from "../serve/report/probes.js";
import type { PoolState } from "../servers/admission.js";
import type { Strategy } from "../servers/placement.js";
import type { ServerView } from "../servers/server.js";
import type { LeaseWait } from "../sessions/leases.js";
import type { RequestAnswer, RequestChange } from "../sessions/requests.js";
import type { TurnLease } from "../sessions/seen.js";
import type { SessionOptions } from "../sessions/use/load.js";
import type { SessionView } from "../sessions/view.js";

export interface FleetOptions {
  /** Settings in the form of a configuration file. They take precedence over the environment and the files. */
  config?: PartialConfig;
  /** The environment to take settings and tokens from, and to pass on to servers. Default: `process.env`. */
  env?: NodeJS.ProcessEnv;
  /**
   * The folder where the search for `.copilotfleet.json` starts. It continues in the folders above. Default: the
   * working folder. Some keys in that file need the user's trust (`copilotfleet trust`).
   */
  cwd?: string;
  /** A configuration file to read instead of `.copilotfleet.json`. It may set all keys. */
  configFile?: string;
  /** The entry point that the audit log names for the actions of this process. Default: `library` */
  via?: Via;
}

/** Selects servers. A server must match every field that is given. */
export interface ServerFilter {
  /** The owner. */
  user?: string | undefined;
  state?: ServerState | undefined;
  /** The name of a host of the fleet. */
  host?: string | undefined;
}

/** Selects sessions. A session must match every field that is given. */
export interface SessionFilter {
  /** The owner or a member. */
  user?: string | undefined;
  state?: SessionState | undefined;
  purpose?: string | undefined;
  /** The name of a host of the fleet. */
  host?: string | undefined;
  /** The model of the session. For a session without its own model, `session.model` of the configuration counts. */
  model?: string | undefined;
}

export interface ConnectInfo {
  /** `host:port`, in the format of the SDK's `RuntimeConnection.forUri`. */
  url: string;
  /** The connection token of the user's server. Everybody who has it can act as that user. */
  token: string;
  user: string;
  serverId: string;
}

/** The server that a user's next session would use. */
export interface RouteView {
  user: string;
  isolation: Isolation;
  /** Null if every user has their own server. */
  strategy: Strategy | null;
  /** The host of that server; null if the store supports only one host. */
  host: string | null;
  serverId: string;
  reason: string;
  /** The current state of the server; null if it was never started. */
  server: ServerView | null;
  /** The pool of that host. A closed pool starts no servers and admits no turns. */
  pool: PoolState;
}

export interface ResumeSessionOptions extends SessionOptions {
  user: string;
  /** How long to wait for room in the server's memory (`session.maxActive`). Default: `30s`. */
  wait?: Duration;
  /** @internal `wait` after the check of the arguments. */
  waitMs?: number;
  signal?: AbortSignal;
}

export interface CreateSessionOptions extends ResumeSessionOptions {
  /** Default: a random id. */
  sessionId?: string;
  purpose?: string;
  /** Default: the first line of the first prompt. */
  title?: string;
  /** How long gc keeps the session after its last use, such as `24h`. Default: `session.ttl` of the configuration. */
  ttl?: Duration;
  /**
   * Other users who may use the session. A list, even an empty one, makes the session collaborative: each turn needs
   * the lease. Default: the session is private.
   */
  members?: readonly string[];
  /** The tools that the session has, now and later. Default: `session.tools`, which also limits this list. */
  availableTools?: string[];
  /** Whether to delete the session when it is left or the fleet is closed. After a crash, gc deletes it. */
  ephemeral?: boolean;
  /**
   * Whether to refuse with `FLEET_MODEL_UNCONFIGURED`, before anything is created, if neither a model provider nor a
   * GitHub token is configured. Default: false, so the session is created, and its first prompt fails.
   */
  needsModel?: boolean;
}

export type { UpdateSessionOptions } from "../sessions/update.js";

export interface SendOptions {
  /** How long the turn may take before it is aborted. Default: no limit. */
  timeout?: Duration;
  /** @internal `timeout` after the check of the arguments. */
  timeoutMs?: number;
  /** How long to wait for a lease that another user holds. Default: `30s`. */
  wait?: Duration;
  /** @internal `wait` after the check of the arguments. */
  waitMs?: number;
  /** A lease that the caller holds on the session. The fleet checks it right before it sends the prompt. */
  lease?: TurnLease;
  /**
   * Called if the wait takes longer than a second, and again when the lease or the number of earlier waiters changes.
   */
  onWait?: (wait: LeaseWait) => void;
  /** Called with each piece of the reply as it arrives. Iterating over the reply yields the same pieces. */
  onDelta?: (text: string) => void;
  /** Called with each event of the turn, such as tool calls and usage. Events of sub-agents have an `agentId`. */
  onEvent?: (event: SessionEvent) => void;
  /** Aborts the turn. */
  signal?: AbortSignal;
}

export interface UseOptions extends SendOptions {
  user: string;
  /** The attachments of the prompt, in the form of the SDK's `send`. The server reads the files that they name. */
  attachments?: MessageOptions["attachments"];
  /** Idempotency key: 1 to 255 visible ASCII characters. For 24 hours, the user's calls with this key run one turn. */
  key?: string;
  /** Further settings for the SDK's `resumeSession`. */
  session?: SessionOptions;
  /**
   * Whether the user answers the agent's permission requests and questions, with `sessions.answer` or over HTTP.
   * Default: false, so the agent asks only the handlers in `session`. The user is asked for permissions only if
   * `session.approve` is "ask", and only on the user's own server.
   */
  interactive?: boolean;
  /** The id of the token that this program's own client presented. `usage --by token` groups by it. */
  tokenId?: string;
  /** Called when the agent of an interactive turn asks, and when its request is answered or ends without an answer. */
  onRequest?: (change: RequestChange) => void;
  /** When this signal aborts, the agent's waiting requests expire. Each later request expires at once. */
  askUntil?: AbortSignal;
}

/** The answer to a request of the agent: `decision` for a permission, `answer` for a question. */
export type AnswerOptions = RequestAnswer & { user: string };

/** The reply of a turn, its id and its usage. */
export interface TurnResult extends TurnReply {
  /** The id of the turn: that of its prompt in the session's history. */
  turn: string;
  /** The turn's usage, as the model service reported it. Null if another process ran the turn (see `key`) and died. */
  usage: TurnUsage | null;
}

/** The reply of a turn, and the state of the session after it. */
export interface SessionReply extends TurnResult {
  session: SessionView;
}

/** The conversation of a session. */
export interface Transcript {
  session: SessionView;
  /** Prompts, replies and tool calls, in the order in which they were written. */
  entries: TranscriptEntry[];
}

export interface SpawnRequest {
  /** The source of the server's GitHub token. Default: the recorded source, or `auth` of the configuration. */
  token?: TokenSource;
  cwd?: string;
  /** How long to wait until the server answers. Default: `30s`. */
  wait?: Duration;
  /** @internal `wait` after the check of the arguments. */
  waitMs?: number;
}

export interface SpawnManyRequest extends SpawnRequest {
  /** Called after each start of a server on this host, and once for each other host, after all starts there. */
  onProgress?: OnProgress;
}

export interface StopRequest {
  /** How long to wait for turns in flight. Default: `drain.timeout` of the configuration. */
  drainTimeout?: Duration;
  /** @internal `drainTimeout` after the check of the arguments. */
  drainTimeoutMs?: number;
  /** Whether to kill the servers at once, even during a turn. */
  force?: boolean;
  /**
   * Called when a server has stopped, and when the turns that the stop waits for change. Another host reports only that
   * it has finished.
   */
  onProgress?: OnProgress;
  signal?: AbortSignal;
}

export interface LogEndOptions {
  /** How many lines to return at most. */
  lines: number;
  /** Leaves out lines from before this time: a `Date`, a time in ISO 8601, or how long ago, such as `10m`. */
  since?: Moment;
  /** Whether to return lines of the launch before the latest one. */
  previous?: boolean;
}

export interface RollingRequest extends Omit<StopRequest, "force"> {
  /** How many servers may refuse turns at the same time, because their processes are being replaced. Default: 1. */
  maxUnavailable?: number;
}

export interface SuperviseOptions {
  /** Called with each log entry of the supervisor. */
  log: ServeLog;
  /**
   * The address of the front door, as in {@link OpenDoorOptions}. Without this and `serve.listen`, no front door opens.
   */
  listen?: string | Address | InheritedListener;
  /**
   * The address of the HTTP API, as in {@link OpenHttpDoorOptions}. Without this and `serve.http`, there is no HTTP
   * API.
   */
  http?: string | Address | InheritedListener;
  /** Cancels the start. */
  signal?: AbortSignal;
}

export interface OpenHttpDoorOptions extends DoorListeners {
  /**
   * An address such as "127.0.0.1:4380", port 0 for any free port, or an inherited descriptor. Default: `serve.http` of
   * the configuration; if that is null, any free port of 127.0.0.1.
   */
  listen?: string | Address | InheritedListener;
  /** Answers `/healthz`, `/readyz` and `/metrics` in place of the door itself. */
  probes?: Probes;
  /** Cancels the wait for the address. */
  signal?: AbortSignal;
}

export interface OpenDoorOptions extends DoorListeners {
  /**
   * An address such as "127.0.0.1:4300", port 0 for any free port, or an inherited descriptor. Default: `serve.listen`
   * of the configuration; if that is null, any free port of 127.0.0.1.
   */
  listen?: string | Address | InheritedListener;
  /** Cancels the wait for the address. */
  signal?: AbortSignal;
}

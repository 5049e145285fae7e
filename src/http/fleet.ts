import type { UsageReport } from "../accounts/ledger.js";
import type { LimitValue, LimitView } from "../accounts/limits.js";
import type { FleetEvent } from "../base/event.js";
import type { UsageBy } from "../base/usage.js";
import type { UserLimit } from "../base/user-limits.js";
import type { EventPositions, EventsFilter } from "../hosts/all-events.js";
import type { SuspendedUser, UserEntry } from "../hosts/gather.js";
import type {
  AnswerOptions,
  CreateSessionOptions,
  SendOptions,
  ServerFilter,
  SessionFilter,
  StopRequest,
  Transcript,
  TurnResult,
  UpdateSessionOptions,
  UseOptions,
} from "../hosts/options.js";
import type { BusyServer, HostView } from "../hosts/overview.js";
import type { PurgeReceipt } from "../hosts/purge.js";
import type { Identity, Relation, Scope } from "../identity/identity.js";
import type { IssuedToken, TokenView } from "../identity/tokens.js";
import type { Sample } from "../serve/report/measurements.js";
import type { PoolState } from "../servers/admission.js";
import type { ServerView } from "../servers/server.js";
import type { Stopped } from "../servers/stop.js";
import type { AgentRequest, RequestChange } from "../sessions/requests.js";
import type { SessionView } from "../sessions/view.js";

export type SessionEvent = Parameters<NonNullable<SendOptions["onEvent"]>>[0];

/**
 * The methods of the library that the routes of the HTTP API call. These methods, and not the routes, contain all
 * rules.
 */
export interface ApiFleet {
  readonly sessions: {
    /** Creates a session, and does not keep it open. Several calls of a user with the same `key` create one session. */
    create(options: CreateSessionOptions & { key?: string }): Promise<SessionView>;
    list(filter: SessionFilter): Promise<SessionView[]>;
    get(id: string, options: { user: string }): Promise<SessionView>;
    update(id: string, options: UpdateSessionOptions): Promise<SessionView>;
    delete(ids: readonly string[], options: { user: string }): Promise<{ deleted: string[] }>;
    turn(id: string, prompt: string, options: UseOptions): Promise<TurnResult>;
    abort(id: string, options: { user: string }): Promise<{ aborted: boolean }>;
    /** Yields the recorded events of a session and, with `follow`, also the events that are added later. */
    followEvents(
      id: string,
      options: { user: string; after?: string; follow?: boolean; signal?: AbortSignal },
    ): AsyncGenerator<SessionEvent, void, undefined>;
    /** The agent requests that wait for an answer from this user. */
    requests(id: string, options: { user: string }): Promise<AgentRequest[]>;
    answer(id: string, requestId: string, options: AnswerOptions): Promise<AgentRequest>;
    /** Calls the listener at each change of the user's agent requests. Returns a function that removes the listener. */
    onRequests(whose: { id: string; user: string }, listener: (change: RequestChange) => void): () => void;
    transcript(id: string, options: { user: string; turns?: number; signal?: AbortSignal }): Promise<Transcript>;
    count(user: string): Promise<number>;
    /** How the identity relates to the session with this id. */
    relation(identity: Identity, id: string): Promise<Exclude<Relation, "none">>;
  };
  readonly servers: {
    list(filter: ServerFilter): Promise<BusyServer[]>;
    stop(ids: readonly string[], request: StopRequest): Promise<{ stopped: Stopped[] }>;
    spawn(user: string, options: { signal: AbortSignal }): Promise<{ server: ServerView; created: boolean }>;
    restart(ids: readonly string[], request: StopRequest): Promise<{ stopped: Stopped[]; servers: ServerView[] }>;
  };
  readonly events: {
    list(filter: EventsFilter): Promise<FleetEvent[]>;
    /** The events that the filter selects: those that are recorded, and then new ones as they come. */
    follow(
      filter: EventsFilter & { after: EventPositions; signal: AbortSignal },
    ): AsyncGenerator<FleetEvent, void, undefined>;
  };
  readonly pool: { state(): Promise<PoolState> };
  readonly hosts: {
    list(): Promise<HostView[]>;
    /**
     * The samples after the given time, from each host that answers. Without a time, all samples that the hosts have.
     */
    samples(after: string | undefined): Promise<{ host: string; samples: Sample[] }[]>;
  };
  readonly limits: {
    get(user: string): Promise<LimitView>;
    set(user: string, limits: Partial<Record<UserLimit, LimitValue>>): Promise<LimitView>;
  };
  readonly tokens: {
    list(filter: { user?: string | undefined }): Promise<TokenView[]>;
    issue(
      user: string,
      options: { ttl?: string; scopes?: readonly Scope[]; sessionId?: string; label?: string },
    ): Promise<IssuedToken>;
    revoke(which: { ids: readonly string[] }, options?: { ignoreNotFound?: boolean }): Promise<{ revoked: string[] }>;
    /** The user of a one-time code. Does not use the code up. Null if the code is not valid. */
    ownerOf(code: string): Promise<string | null>;
    /** Exchanges a one-time code for a token. Null if the code is not valid, or does not belong to this user. */
    redeem(code: string, user: string): Promise<IssuedToken | null>;
  };
  readonly users: {
    list(): Promise<UserEntry[]>;
    suspend(user: string, options: { reason?: string }): Promise<SuspendedUser>;
    resume(user: string): Promise<{ user: string }>;
    purge(user: string, options: { signal?: AbortSignal }): Promise<PurgeReceipt>;
  };
  readonly usage: {
    report(options: {
      user?: string | undefined;
      by?: UsageBy | undefined;
      since?: string | undefined;
    }): Promise<UsageReport>;
  };
}

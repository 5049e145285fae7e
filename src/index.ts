/**
 * The library lets programs use the same fleet as the command does. Do not import from deeper paths, because they may
 * change.
 *
 * @example
 * ```ts
 * import { Fleet } from "copilotfleet";
 *
 * await using fleet = await Fleet.open();
 * const session = await fleet.sessions.create({ user: "alice", purpose: "review" });
 * const { text } = await fleet.sessions.send(session, "Hello");
 * ```
 */

export type { EventsBreak } from "./accounts/audit/verify.js";
export type { UsageReport, UsageRow, UsageTotal } from "./accounts/ledger.js";
export type { LimitValue, LimitView } from "./accounts/limits.js";
export {
  ERRORS,
  type ErrorEntry,
  type ErrorText,
  FleetError,
  type FleetErrorCode,
  type FleetErrorOptions,
  isFleetError,
  type OptionNaming,
  type Suggestion,
} from "./base/errors.js";
export { type Actor, EVENT_TYPES, type EventType, type FleetEvent, type Via } from "./base/event.js";
export type { HostEntry, HostRecord, Placement, Purge } from "./base/host.js";
export type { AwaitedTurns, OnProgress, Progress } from "./base/progress.js";
export type {
  LimitsReached,
  LimitsReport,
  Protection,
  Resource,
  RestrictedNetwork,
  SandboxMode,
  SandboxReport,
} from "./base/sandbox.js";
export type { Isolation, RecordedSource, ServerState, TokenSource } from "./base/server.js";
export type { Lease, SessionState, TurnOutcome, TurnUsage } from "./base/session.js";
export type { LedgerLine, QuotaPart, Suspension, UsageBy, UsageCounts, UsageNumbers } from "./base/usage.js";
export type { LimitSource, UserLimit, UserLimits } from "./base/user-limits.js";
export type { Duration, Moment } from "./base/values/measures.js";
export type { PartialConfig } from "./config/load/load.js";
export type { Address } from "./config/rules.js";
export type { Config } from "./config/schema.js";
export type { DoorDrain, FrontDoor } from "./door/door.js";
export type { DoorEvent, DoorListeners, RequestReport } from "./door/state/report.js";
export { Fleet } from "./fleet/fleet.js";
export type { ClientGroup, LeaseGroup } from "./fleet/groups/clients.js";
export type { DescriptionGroup } from "./fleet/groups/descriptions.js";
export type { DoorGroup } from "./fleet/groups/doors.js";
export type { EventGroup, FollowFilter } from "./fleet/groups/events.js";
export type { Group } from "./fleet/groups/group.js";
export type { HostGroup, PoolGroup, ServerGroup, SupervisorView } from "./fleet/groups/servers.js";
export type {
  ExportSessionOptions,
  ImportSessionOptions,
  SessionGroup,
} from "./fleet/groups/sessions.js";
export type { TokenGroup } from "./fleet/groups/tokens.js";
export type { LimitGroup, UsageGroup, UsageOptions } from "./fleet/groups/usage.js";
export type { ExportedUser, ExportUserOptions, PurgeUserOptions, UserGroup } from "./fleet/groups/users.js";
export type { BrokenAt, EventPositions, EventsFilter, EventsVerified } from "./hosts/all-events.js";
export type { SuspendedUser, UserEntry } from "./hosts/gather.js";
export type {
  AnswerOptions,
  ConnectInfo,
  CreateSessionOptions,
  FleetOptions,
  LogEndOptions,
  OpenDoorOptions,
  OpenHttpDoorOptions,
  ResumeSessionOptions,
  RollingRequest,
  RouteView,
  SendOptions,
  ServerFilter,
  SessionFilter,
  SessionReply,
  SpawnManyRequest,
  SpawnRequest,
  StopRequest,
  SuperviseOptions,
  Transcript,
  TurnResult,
  UpdateSessionOptions,
  UseOptions,
} from "./hosts/options.js";
export type {
  BusyServer,
  Description,
  HostView,
  Overview,
  ServerDescription,
  ServerFacts,
  SessionDescription,
  UserDescription,
  UserView,
} from "./hosts/overview.js";
export type { PurgeReceipt } from "./hosts/purge.js";
export type { ExportedSession } from "./hosts/sessions/archives.js";
export type { HttpDoor } from "./http/door.js";
export type { Scope } from "./identity/identity.js";
export type { SignOnReport } from "./identity/sign-on.js";
export { type DoorProxy, openProxy, type ProxyEvent, type ProxyOptions } from "./identity/tls/proxy.js";
export type { IssuedToken, RotatedToken, TokenView } from "./identity/tokens.js";
export type { TurnOptions, TurnReply } from "./runtime/client/turn.js";
export type { ToolOutcome, TranscriptEntry } from "./runtime/history/transcript.js";
export type { InheritedListener } from "./runtime/launch/listen.js";
export type { LogLevel, ServeLog, StreamCounts } from "./serve/context.js";
export type { LogEnd, LogPosition } from "./serve/logs.js";
export type { ProbeAnswer, Probes } from "./serve/report/probes.js";
export type { Drained, DrainRequest as SupervisorDrain, LeaveRequest, Supervisor } from "./serve/supervisor.js";
export type { PoolState } from "./servers/admission.js";
export type { ClientOptions } from "./servers/clients.js";
export type { Strategy } from "./servers/placement.js";
export type { RollingResult } from "./servers/recycle.js";
export type { ServerView } from "./servers/server.js";
export type { Stopped } from "./servers/stop.js";
export type { GcRequest, GcResult } from "./sessions/gc/collect.js";
export type { SkipReason } from "./sessions/gc/delete.js";
export type { UnreadableRecord } from "./sessions/gc/survey.js";
export type { ServerAction } from "./sessions/gc/unused-servers.js";
export type { HeldLease, LeaseWait, LockOptions } from "./sessions/leases.js";
export type { EvictionResult, KeptReason } from "./sessions/memory/eviction.js";
export type { Remain } from "./sessions/purge.js";
export type { ClearedRemain, RemainKind } from "./sessions/remains.js";
export type {
  AgentRequest,
  Asked,
  AskedPermission,
  AskedQuestion,
  RequestAnswer,
  RequestChange,
  RequestOutcome,
} from "./sessions/requests.js";
export type { TurnLease } from "./sessions/seen.js";
export type { SessionOptions } from "./sessions/use/load.js";
export type { PendingReply } from "./sessions/use/turn-records.js";
export type { SessionView } from "./sessions/view.js";

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

export type { HttpDoor } from "./api/door.js";
export type { LimitSource, UserLimit, UserLimits } from "./config/limits.js";
export type { PartialConfig } from "./config/load/load.js";
export type { Address } from "./config/rules.js";
export type { Config } from "./config/schema.js";
export type { Duration, Moment } from "./config/values/measures.js";
export type { Remain } from "./data/purge.js";
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
} from "./errors.js";
export type { EventsBreak } from "./events/verify.js";
export { Fleet, type Groups } from "./fleet/fleet.js";
export type { ClientGroup, LeaseGroup } from "./fleet/groups/clients.js";
export type { DescriptionGroup } from "./fleet/groups/descriptions.js";
export type { DoorGroup } from "./fleet/groups/doors.js";
export type { EventGroup, FollowFilter } from "./fleet/groups/events.js";
export type { Group } from "./fleet/groups/group.js";
export type { RecordGroup, SessionTroubles, TroubledServer, WeakServer } from "./fleet/groups/records.js";
export type { HostGroup, PoolGroup, ServerGroup, SupervisorView } from "./fleet/groups/servers.js";
export type {
  ArchiveGroup,
  ExportSessionOptions,
  ImportSessionOptions,
  RequestGroup,
  SessionGroup,
} from "./fleet/groups/sessions.js";
export type { TokenGroup } from "./fleet/groups/tokens.js";
export type { LimitGroup, UsageGroup, UsageOptions } from "./fleet/groups/usage.js";
export type { ExportedUser, ExportUserOptions, PurgeUserOptions, UserGroup } from "./fleet/groups/users.js";
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
} from "./fleet/options.js";
export type { DoorDrain, FrontDoor } from "./gateway/door.js";
export type { DoorEvent, DoorListeners, RequestReport } from "./gateway/state/report.js";
export type { ClearedRemain, RemainKind } from "./hosts/remains.js";
export type { Scope } from "./identity/identity.js";
export type { SignOnReport } from "./identity/sign-on.js";
export { type DoorProxy, openProxy, type ProxyEvent, type ProxyOptions } from "./identity/tls/proxy.js";
export type { IssuedToken, RotatedToken, TokenView } from "./identity/tokens.js";
export { type Actor, EVENT_TYPES, type EventType, type FleetEvent, type Via } from "./model/event.js";
export type { HostEntry, HostRecord, Placement, Purge } from "./model/host.js";
export type { AwaitedTurns, OnProgress, Progress } from "./model/progress.js";
export type {
  LimitsReached,
  LimitsReport,
  Protection,
  Resource,
  RestrictedNetwork,
  SandboxMode,
  SandboxReport,
} from "./model/sandbox.js";
export type { Isolation, RecordedSource, ServerState, TokenSource } from "./model/server.js";
export type { Lease, SessionState, TurnOutcome, TurnUsage } from "./model/session.js";
export type { LedgerLine, QuotaPart, Suspension, UsageBy, UsageCounts, UsageNumbers } from "./model/usage.js";
export type { BrokenAt, EventPositions, EventsFilter, EventsVerified } from "./peers/all-events.js";
export type { SuspendedUser, UserEntry } from "./peers/gather.js";
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
} from "./peers/overview.js";
export type { PurgeReceipt } from "./peers/purge.js";
export type { ExportedSession } from "./peers/sessions/archives.js";
export type { PoolState } from "./pool/admission.js";
export type { ClientOptions } from "./pool/clients.js";
export type { Strategy } from "./pool/placement.js";
export type { RollingResult } from "./pool/recycle.js";
export type { ServerView } from "./pool/server.js";
export type { Stopped } from "./pool/stop.js";
export type { TurnOptions, TurnReply } from "./runtime/client/turn.js";
export type { ToolOutcome, TranscriptEntry } from "./runtime/history/transcript.js";
export type { InheritedListener } from "./runtime/launch/listen.js";
export type { LogLevel, ServeLog, StreamCounts } from "./serve/context.js";
export type { LogEnd, LogPosition } from "./serve/logs.js";
export type { ProbeAnswer, Probes } from "./serve/report/probes.js";
export type { Drained, DrainRequest as SupervisorDrain, LeaveRequest, Supervisor } from "./serve/supervisor.js";
export type { GcRequest, GcResult } from "./sessions/gc/collect.js";
export type { SkipReason } from "./sessions/gc/delete.js";
export type { UnreadableRecord } from "./sessions/gc/survey.js";
export type { ServerAction } from "./sessions/gc/unused-servers.js";
export type { HeldLease, LeaseWait, LockOptions } from "./sessions/leases.js";
export type { EvictionResult, KeptReason } from "./sessions/memory/eviction.js";
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
export type { StoreProbe } from "./store/ports.js";
export type { UsageReport, UsageRow, UsageTotal } from "./usage/ledger.js";
export type { LimitValue, LimitView } from "./usage/limits.js";

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
export type { Duration } from "./config/values/duration.js";
export type { Moment } from "./config/values/moment.js";
export type { Remain } from "./data/purge/purge.js";
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
export type { ClientGroup } from "./fleet/groups/clients.js";
export type { DescriptionGroup } from "./fleet/groups/descriptions.js";
export type { DoorGroup } from "./fleet/groups/doors.js";
export type { EventGroup, FollowFilter } from "./fleet/groups/events/events.js";
export type { Group } from "./fleet/groups/group.js";
export type { HostGroup } from "./fleet/groups/hosts.js";
export type { LeaseGroup } from "./fleet/groups/leases.js";
export type { PoolGroup, SupervisorView } from "./fleet/groups/pool.js";
export type { RecordGroup, SessionTroubles, TroubledServer, WeakServer } from "./fleet/groups/records.js";
export type { ServerGroup } from "./fleet/groups/servers.js";
export type { ArchiveGroup, ExportSessionOptions, ImportSessionOptions } from "./fleet/groups/sessions/archives.js";
export type { RequestGroup } from "./fleet/groups/sessions/requests.js";
export type { SessionGroup } from "./fleet/groups/sessions.js";
export type { TokenGroup } from "./fleet/groups/tokens.js";
export type { UsageGroup, UsageOptions } from "./fleet/groups/usage/usage.js";
export type { ExportedUser } from "./fleet/groups/users/export-user.js";
export type { LimitGroup } from "./fleet/groups/users/limits.js";
export type { ExportUserOptions, PurgeUserOptions, UserGroup } from "./fleet/groups/users/users.js";
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
export type { DoorEvent, DoorListeners, RequestReport } from "./gateway/state/door/report.js";
export type { ClearedRemain } from "./hosts/remains.js";
export type { Scope } from "./identity/identity.js";
export type { SignOnReport } from "./identity/sign-on.js";
export { type DoorProxy, openProxy, type ProxyEvent, type ProxyOptions } from "./identity/tls/proxy.js";
export type { IssuedToken, RotatedToken, TokenView } from "./identity/tokens.js";
export { type Actor, EVENT_TYPES, type EventType, type FleetEvent, type Via } from "./model/events/event.js";
export type { HostEntry, HostRecord } from "./model/host.js";
export type { Lease } from "./model/lease.js";
export type { Placement, Purge } from "./model/placement.js";
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
export type { Isolation, ServerState, TokenSource } from "./model/server.js";
export type { SessionState, TurnOutcome, TurnUsage } from "./model/session.js";
export type { QuotaPart } from "./model/usage/quota.js";
export type { LedgerLine, UsageBy, UsageCounts, UsageNumbers } from "./model/usage/usage.js";
export type { Suspension } from "./model/usage/user-limits.js";
export type {
  Description,
  ServerDescription,
  ServerFacts,
  SessionDescription,
  UserDescription,
} from "./peers/descriptions.js";
export type { EventPositions, EventsFilter } from "./peers/events/all-events.js";
export type { BrokenAt, EventsVerified } from "./peers/events/verify.js";
export type { BusyServer, HostView, Overview, UserView } from "./peers/overview.js";
export type { PurgeReceipt } from "./peers/purge.js";
export type { ExportedSession } from "./peers/sessions/archives.js";
export type { SuspendedUser, UserEntry } from "./peers/users.js";
export type { PoolState } from "./pool/admission.js";
export type { ClientOptions } from "./pool/clients.js";
export type { Strategy } from "./pool/placement.js";
export type { RollingResult } from "./pool/recycle/rolling.js";
export type { ServerView } from "./pool/server.js";
export type { Stopped } from "./pool/stop/stop.js";
export type { TurnOptions, TurnReply } from "./runtime/client/turn.js";
export type { RemainKind } from "./runtime/files/storage-remains.js";
export type { ToolOutcome } from "./runtime/history/tool-call.js";
export type { TranscriptEntry } from "./runtime/history/transcript.js";
export type { InheritedListener } from "./runtime/launch/listen.js";
export type { LogLevel, ServeLog, StreamCounts } from "./serve/context.js";
export type { LogEnd, LogPosition } from "./serve/logs/log-tail.js";
export type { ProbeAnswer, Probes } from "./serve/report/probes.js";
export type { Drained, DrainRequest as SupervisorDrain, LeaveRequest, Supervisor } from "./serve/supervisor.js";
export type { ServerAction } from "./sessions/gc/broken-servers.js";
export type { GcRequest, GcResult } from "./sessions/gc/collect.js";
export type { SkipReason } from "./sessions/gc/delete.js";
export type { UnreadableRecord } from "./sessions/gc/survey.js";
export type { HeldLease, LeaseWait } from "./sessions/leases/leases.js";
export type { LockOptions } from "./sessions/leases/options.js";
export type { TurnLease } from "./sessions/leases/seen.js";
export type { EvictionResult, KeptReason } from "./sessions/memory/eviction.js";
export type {
  AgentRequest,
  Asked,
  AskedPermission,
  AskedQuestion,
  RequestAnswer,
  RequestChange,
  RequestOutcome,
} from "./sessions/requests/request.js";
export type { SessionOptions } from "./sessions/use/load.js";
export type { PendingReply } from "./sessions/use/reply.js";
export type { SessionView } from "./sessions/view.js";
export type { StoreProbe } from "./store/ports.js";
export type { UsageReport, UsageRow, UsageTotal } from "./usage/ledger/report.js";
export type { LimitValue, LimitView } from "./usage/limits/limits.js";

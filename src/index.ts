/**
 * The library: the same fleet as the command, for programs. Import nothing from deeper paths, they may change.
 *
 * @example
 * ```ts
 * import { Fleet } from "copilotfleet";
 *
 * await using fleet = await Fleet.open();
 * const session = await fleet.createSession({ user: "alice", purpose: "review" });
 * const { text } = await fleet.send(session, "Hello");
 * ```
 */
export type { Config } from "./config/schema.js";
export { ERRORS, FleetError, type FleetErrorCode, isFleetError } from "./errors.js";
export { Fleet } from "./fleet.js";
export type {
  ConnectInfo,
  CreateSessionOptions,
  FleetOptions,
  ResumeSessionOptions,
  RouteView,
  SpawnRequest,
  StopRequest,
} from "./fleet-options.js";
export type { DoorEvent, DoorListeners, RequestReport } from "./gateway/context.js";
export type { FrontDoor } from "./gateway/door.js";
export type { IssuedToken, TokenView } from "./gateway/tokens.js";
export type { PoolState } from "./pool/admission.js";
export type { ClientOptions } from "./pool/clients.js";
export type { ServerView } from "./pool/server.js";
export type { Stopped } from "./pool/stopping.js";
export type { LogEnd } from "./remote/host-actions.js";
export type { HostView, Overview } from "./remote/overview.js";
export type { TurnOptions, TurnReply } from "./runtime/client/turn.js";
export type { InheritedListener } from "./runtime/listen.js";
export type { LogPosition } from "./serve/log-tail.js";
export type { EvictionResult } from "./sessions/eviction.js";
export type { GcRequest, GcResult } from "./sessions/gc.js";
export type { LockOptions } from "./sessions/lease-options.js";
export type { TurnLease } from "./sessions/lease-seen.js";
export type { HeldLease } from "./sessions/leases.js";
export type { SendOptions } from "./sessions/open-session.js";
export type { SessionOptions } from "./sessions/session-config.js";
export type { Exchange } from "./sessions/sessions.js";
export type { SessionView } from "./sessions/view.js";
export type { Isolation, Lease, ServerState, SessionState, TokenSource } from "./store/store.js";

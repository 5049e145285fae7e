/** The kinds of events. */
export const EVENT_TYPES = [
  "token.issued",
  "token.revoked",
  "token.rotated",
  "signon.accepted",
  "signon.refused",
  "session.created",
  "session.shared",
  "session.imported",
  "session.exported",
  "session.evicted",
  "session.deleted",
  "session.stolen",
  "turn.begun",
  "turn.ended",
  "turn.cut",
  "server.started",
  "server.crashed",
  "server.recycled",
  "server.drained",
  "server.stopped",
  "limit.set",
  "limit.cleared",
  "limit.near",
  "limit.reached",
  "config.trusted",
  "sandbox.weakened",
  "user.suspended",
  "user.resumed",
  "user.purged",
  "user.exported",
  "command.run",
  "events.shortened",
  "events.lost",
] as const;

export type EventType = (typeof EVENT_TYPES)[number];

/** The entry point through which somebody acted. `fleet`: nobody asked; the fleet itself acted. */
export type Via = "command" | "library" | "door" | "http" | "fleet";

/** The person or program that caused an event. */
export interface Actor {
  /** The user; null for the operator of the host and for the fleet itself. */
  user: string | null;
  /** The id of the token that the client showed. */
  tokenId: string | null;
  via: Via;
  /** The name of the operating-system user of the process. */
  os: string | null;
}

/** One line of the audit log: who did what to what, and why. */
export interface FleetEvent {
  id: string;
  /** Counts the events of this host's log, from 1. */
  seq: number;
  /** ISO 8601 in UTC, by the clock of the host. If that clock jumps, `seq` shows the order. */
  at: string;
  type: EventType;
  actor: Actor;
  /** The user whom the event concerns, such as the owner of the token or the session. */
  user: string | null;
  sessionId: string | null;
  serverId: string | null;
  /** The host on which it happened; null in a fleet without named hosts. */
  host: string | null;
  /** `ok`, or how the action failed: `refused`, `failed`. The end of a turn has a `TurnOutcome`, or `refused`. */
  outcome: string;
  /** Why: the code of an error, or a word such as `ttl`. Never contains a name or text of a user. */
  reason: string | null;
  /** More about it, for people. Contains no content of sessions. */
  detail: string | null;
}

/** The fields of an event that the calling code provides. The log adds the other fields. */
export interface NewEvent
  extends Partial<Pick<FleetEvent, "user" | "sessionId" | "serverId" | "outcome" | "reason" | "detail">> {
  type: EventType;
  /** Those fields of the actor that differ from the actor of the process. */
  actor?: Partial<Actor>;
}

/** Counts the events of one process. */
export interface EventCounts {
  written: number;
  /** Events that could not be written, and were dropped because too many waited. */
  lost: number;
  /** Events that wait to be written. Their number grows as long as the log cannot be written to. */
  waiting: number;
}

/** The interface through which the fleet's code writes to the audit log. */
export interface EventLog {
  readonly counts: Readonly<EventCounts>;

  /** The actor that an event would get if the calling code reported it now. */
  readonly actor: Actor;

  /**
   * Writes an event durably, together with all events that wait to be written. For actions that concern security: call
   * it before the action is acknowledged.
   *
   * @throws FleetError `FLEET_EVENTS_UNWRITABLE` when the event cannot be written.
   */
  record(event: NewEvent): Promise<void>;

  /** Queues an event, which is written within a fraction of a second. Never fails, and costs the caller nothing. */
  note(event: NewEvent): void;

  /** Writes the queued events. Never rejects. */
  flush(): Promise<void>;
}

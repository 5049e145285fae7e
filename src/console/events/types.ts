/** A line of the audit log: who did what to what, and why. */
export interface FleetEvent {
  id: string;
  seq: number;
  at: string;
  type: string;
  actor: { user: string | null; tokenId: string | null; via: string; os: string | null };
  user: string | null;
  sessionId: string | null;
  serverId: string | null;
  host: string | null;
  outcome: string;
  reason: string | null;
  detail: string | null;
}

export interface EventPage {
  events: readonly FleetEvent[];
  next: string | null;
}

/** The kinds of events by which the page can filter. */
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

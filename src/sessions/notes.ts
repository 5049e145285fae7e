import type { EventLog } from "../model/events/event.js";
import type { SessionRecord } from "../model/session.js";

type Shared = Pick<SessionRecord, "id" | "owner" | "serverId" | "members">;

/** Adds to the audit log that a session was created, and with whom it is shared. */
export function noteCreated(events: EventLog, record: Shared): void {
  const { id, owner, serverId, members } = record;
  events.note({ type: "session.created", user: owner, sessionId: id, serverId });
  if (members.length > 0) noteShared(events, record);
}

/** Adds to the audit log with whom the owner now shares a session. */
export function noteShared(events: EventLog, { id, owner, members }: Omit<Shared, "serverId">): void {
  const detail = members.length === 0 ? "with nobody" : `with ${members.join(", ")}`;
  events.note({ type: "session.shared", user: owner, sessionId: id, detail });
}

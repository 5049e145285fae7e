import { isFleetError } from "../../errors.js";
import type { EventLog, NewEvent } from "../../model/events/event.js";
import type { ServerRecord } from "../../model/server.js";
import type { SessionRecord } from "../../model/session.js";

type Shared = Pick<SessionRecord, "id" | "owner" | "serverId" | "members">;

/** Notes that a session was created, and with whom it is shared. */
export function noteCreated(events: EventLog, record: Shared): void {
  const { id, owner, serverId, members } = record;
  events.note({ type: "session.created", user: owner, sessionId: id, serverId });
  if (members.length > 0) noteShared(events, record);
}

/** Notes with whom the owner shares a session from now on. */
export function noteShared(events: EventLog, { id, owner, members }: Omit<Shared, "serverId">): void {
  const detail = members.length === 0 ? "with nobody" : `with ${members.join(", ")}`;
  events.note({ type: "session.shared", user: owner, sessionId: id, detail });
}

/** The codes of errors after which a turn counts as cut. */
const CUT: ReadonlySet<string> = new Set(["FLEET_TURN_CUT", "FLEET_SERVER_LOST", "FLEET_SERVER_UNREACHABLE"]);

interface Where {
  record: Pick<SessionRecord, "id">;
  server: Pick<ServerRecord, "id">;
}

/** Notes the begin of one turn, and its end, without its content. */
export class TurnEvents {
  readonly #events: EventLog;
  readonly #about: Pick<NewEvent, "actor" | "user" | "sessionId" | "serverId">;

  /** Notes that the user's turn begins. */
  constructor(events: EventLog, user: string, { record, server }: Where) {
    this.#events = events;
    this.#about = { actor: { user }, user, sessionId: record.id, serverId: server.id };
    events.note({ type: "turn.begun", ...this.#about });
  }

  ended(how: Pick<NewEvent, "outcome" | "reason"> = {}): void {
    this.#events.note({ type: "turn.ended", ...this.#about, ...how });
  }

  /** The turn did not end by itself. */
  cut(reason: string): void {
    this.#events.note({ type: "turn.cut", ...this.#about, outcome: "failed", reason });
  }

  failed(error: unknown): void {
    const reason = isFleetError(error) ? error.code : "FLEET_INTERNAL";
    if (CUT.has(reason)) this.cut(reason);
    else this.ended({ outcome: "failed", reason });
  }
}

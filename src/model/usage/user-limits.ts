import type { UserLimits } from "../../config/limits.js";
import { FleetError, quote } from "../../errors.js";

/** Set while an operator refuses a user at every entry point. */
export interface Suspension {
  /** ISO 8601, UTC. */
  since: string;
  /** As an operator wrote it, for other operators. */
  reason: string | null;
}

/** The record about the limits of one user. */
export interface UserLimitRecord extends OwnLimits {
  user: string;
  /** The groups in `limits.groups` to which the user belonged at the user's last sign-on that named groups. */
  groups: readonly string[];
}

/** The part of the record that operators set. */
export interface OwnLimits {
  /**
   * The limits that apply to this user alone; null: unlimited. If a limit is absent, the limit of a group or of
   * everybody applies.
   */
  limits: Partial<UserLimits>;
  /** Kept here because every entry point reads the limits of its user anyway. Absent: the user is not suspended. */
  suspended?: Suspension;
}

/** Call this before anything begins for a user. @throws FleetError `FLEET_USER_SUSPENDED` */
export function refuseSuspended(record: UserLimitRecord | null): void {
  if (record?.suspended === undefined) return;
  const { user, suspended } = record;
  // Only a person with a shell on the host gets commands and their comments, and so the reason.
  const reason = suspended.reason === null ? "" : ` # the reason for the suspension: ${suspended.reason}`;
  throw new FleetError("FLEET_USER_SUSPENDED", `User ${quote(user)} has been suspended since ${suspended.since}.`, {
    suggestions: [`copilotfleet user resume ${user}${reason}`],
  });
}

/** The time to which `turnsPerMinute` refers, in milliseconds. */
export const MINUTE_MS = 60_000;

/**
 * The purpose of a slot. A slot counts towards a limit as long as its turn, its connection to a front door, or the
 * creation of its session lasts. A `turn` includes the turn's first prompt. `prompt`, a further prompt of a turn, only
 * counts for `turnsPerMinute`.
 */
export type SlotKind = "turn" | "prompt" | "session" | "connection";

export interface Slot {
  /** Null for a slot that counts for all users together. */
  user: string | null;
  kind: SlotKind;
  /** Random, and unique for the user. The id of a session's slot begins with the id of the session and `~`. */
  id: string;
}

/** A slot that somebody wants. A limit of null is not checked. */
export interface SlotRequest extends Slot {
  /** How many slots of this kind the user may have. Sessions count if they are recorded or have a slot. */
  most: number | null;
  /** How many turns and further prompts of the user may begin in a minute. */
  perMinute: number | null;
}

export type SlotAnswer =
  | { granted: true }
  | {
      granted: false;
      reached: "most" | "perMinute";
      /** How many slots the user has, or how many turns and prompts of the user began in the last minute. */
      used: number;
      /** When the same request may succeed, in milliseconds from now; null if it is not known. */
      retryAfterMs: number | null;
    };

/** How many turns and connections of a user count for these limits now. */
export interface SlotsUsed {
  turnsPerMinute: number;
  concurrentTurns: number;
  connections: number;
}

import type {
  OwnLimits,
  Slot,
  SlotAnswer,
  SlotRequest,
  SlotsUsed,
  UserLimitRecord,
} from "../../model/usage/user-limits.js";

/** How long a call of `isFirst` is remembered, in milliseconds. Longer than a month, the longest period. */
export const NEAR_MS = 32 * 24 * 3_600_000;

/** The limits that `limit set` gives to individual users, suspensions, the users' groups, and the slots that users have. */
export interface LimitStore {
  /** The user's own limits, suspension and groups; null if there are none. Another host may see a change up to a second late. */
  read(user: string): Promise<UserLimitRecord | null>;

  /** The records of all users. Costs one read per record. */
  list(): Promise<UserLimitRecord[]>;

  /** Changes the user's own limits and suspension. `change` must be free of side effects, because it may run again. */
  set(user: string, change: (own: OwnLimits) => OwnLimits): Promise<void>;

  /** Removes the user's own limits, but not a suspension. Resolves with true if there were any. */
  clear(user: string): Promise<boolean>;

  /** Replaces the user's groups. */
  noteGroups(user: string, groups: readonly string[]): Promise<void>;

  /**
   * Takes a slot if the limits in the request allow it. All processes on all hosts together never exceed these limits.
   * A slot ends when it is given back, or some time after its process has ended.
   */
  take(request: SlotRequest): Promise<SlotAnswer>;

  /**
   * Gives a slot back. If the medium fails, resolves anyway, and the slot ends later.
   *
   * @param hasBegun whether the turn began, so that it still counts for the turns per minute
   */
  giveBack(slot: Slot, hasBegun: boolean): Promise<void>;

  /** How many slots the user has, and how many turns of the user began in the last minute. */
  used(user: string): Promise<SlotsUsed>;

  /**
   * True only for the first call, among all hosts, about this limit and period, and only if there was no call about a
   * later period. So only one process records that the user is near the limit.
   *
   * @param name the name of the limit
   * @param from the start of the period
   */
  isFirst(user: string, name: string, from: number): Promise<boolean>;

  /** Deletes everything about the user. */
  forget(user: string): Promise<void>;
}

import type { UserLimits } from "../../config/limits.js";
import type { Slot, SlotAnswer, SlotRequest, SlotsUsed, UserLimitRecord } from "../../model/usage/user-limits.js";

/** The limits that `limit set` sets for single users, the groups of users, and what users have in use. */
export interface LimitStore {
  /** Null if the user has neither limits nor groups. Another host may see a change up to a second late. */
  read(user: string): Promise<UserLimitRecord | null>;

  /** The records of all users. Costs a read for each. */
  list(): Promise<UserLimitRecord[]>;

  /** Changes the user's own limits. `change` must be free of side effects, because it may run again. */
  set(user: string, change: (limits: Partial<UserLimits>) => Partial<UserLimits>): Promise<void>;

  /** Removes the user's own limits. Resolves with true if there were any. */
  clear(user: string): Promise<boolean>;

  /** Replaces the user's groups. */
  noteGroups(user: string, groups: readonly string[]): Promise<void>;

  /**
   * Takes a slot if its limits allow it. All processes of all hosts together never have more than that. A slot ends when it is
   * given back, and some time after its process has ended.
   */
  take(request: SlotRequest): Promise<SlotAnswer>;

  /**
   * Gives a slot back. Never rejects because the medium fails: the slot then ends later.
   *
   * @param hasBegun whether the turn still counts for the minute
   */
  giveBack(slot: Slot, hasBegun: boolean): Promise<void>;

  /** How many slots the user has, and how many turns of the user began in the last minute. */
  used(user: string): Promise<SlotsUsed>;

  /** Resolves with true for the first call with these arguments, on whichever host, and with false for the others. */
  isFirst(user: string, name: string, from: number): Promise<boolean>;

  /** Deletes everything about the user. */
  forget(user: string): Promise<void>;
}

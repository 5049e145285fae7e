import type { UserLimits } from "../../config/limits.js";

/** The record about the limits of one user. */
export interface UserLimitRecord {
  user: string;
  /** The limits of this user alone. A limit that is absent is that of a group or of everybody. Null: unlimited. */
  limits: Partial<UserLimits>;
  /** The groups of `limits.groups` of which the user was a member at the last sign-on that named groups. */
  groups: readonly string[];
}

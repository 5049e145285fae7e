import { type LimitSource, USER_LIMITS, type UserLimit, type UserLimits } from "../../config/limits.js";
import type { Config } from "../../config/schema.js";
import type { UserLimitRecord } from "../../model/usage/user-limits.js";

/** The limits of one user, and where each comes from. */
export interface EffectiveLimits {
  limits: UserLimits;
  sources: Readonly<Record<UserLimit, LimitSource>>;
}

/**
 * A limit to set. `unlimited` or null removes it for this user. `default` restores the limit of the groups or of all
 * users.
 */
export type LimitValue = number | null | "unlimited" | "default";

/** The limits of one user, how much of each is used, and where each comes from. */
export interface LimitView {
  user: string;
  /** The groups in `limits.groups` of which the user was a member at the last sign-on that named groups. */
  groups: readonly string[];
  /** A limit of null means unlimited. */
  limits: UserLimits;
  /** Null if the use of this limit is not counted. */
  used: Readonly<Record<UserLimit, number | null>>;
  sources: Readonly<Record<UserLimit, LimitSource>>;
}

/**
 * The limits that apply to a user. For each limit, the user's own value takes precedence over the values of the user's
 * groups, and these take precedence over the configured value for all users. If several groups have a value, the
 * highest one applies.
 */
export function effectiveLimits(
  { default: everybody, groups }: Config["limits"],
  record: UserLimitRecord | null,
): EffectiveLimits {
  const limits: Partial<Record<UserLimit, number | null>> = {};
  const sources: Partial<Record<UserLimit, LimitSource>> = {};
  for (const name of USER_LIMITS) {
    const { max, source } = ownLimit(name, record) ??
      groupLimit(name, groups, record) ?? { max: everybody[name], source: "default" };
    limits[name] = max;
    sources[name] = source;
  }
  return { limits, sources } as EffectiveLimits;
}

interface Found {
  max: number | null;
  source: LimitSource;
}

function ownLimit(name: UserLimit, record: UserLimitRecord | null): Found | null {
  const max = record?.limits[name];
  return max === undefined ? null : { max, source: "user" };
}

function groupLimit(name: UserLimit, groups: Config["limits"]["groups"], record: UserLimitRecord | null): Found | null {
  let found: Found | null = null;
  for (const group of record?.groups ?? []) {
    const max = Object.hasOwn(groups, group) ? groups[group]?.[name] : undefined;
    if (max === undefined) continue;
    const isHigher = found === null || (found.max !== null && (max === null || max > found.max));
    if (isHigher) found = { max, source: `group:${group}` };
  }
  return found;
}

import { reportOf, type UsageReport } from "../../accounts/ledger.js";
import { effectiveLimits, type LimitValue, type LimitView, type Period, periodOf } from "../../accounts/limits.js";
import { FleetError, option, quote } from "../../base/errors.js";
import type { UsageBy } from "../../base/usage.js";
import { USER_LIMITS, type UserLimit } from "../../base/user-limits.js";
import { type Moment, parseMoment } from "../../base/values/measures.js";
import { audited } from "../../identity/acting.js";
import * as arg from "../../operations/fields.js";
import { Group } from "./group.js";

const DAY_MS = 24 * 3_600_000;

export interface UsageOptions {
  /** Count only the usage of this user. Default: all users. */
  user?: string | undefined;
  /** Default: `user`. */
  by?: UsageBy | undefined;
  /** Count the usage since this time: a time, or how long ago, such as `24h`. Default: 24 hours ago. */
  since?: Moment | undefined;
}

/** The ledger: turns, model requests and tokens, on all hosts. */
export class UsageGroup extends Group {
  /**
   * Adds up the usage since a time. A number is null if neither reported nor estimated.
   *
   * With a Redis store, a `since` of more than two days ago counts from the beginning of its hour.
   */
  async report({ user, by = "user", since }: UsageOptions = {}): Promise<UsageReport> {
    const { store, config } = this.parts;
    const to = Date.now();
    const from = since === undefined ? to - DAY_MS : parseMoment(since, option("since"), to);
    // Add 1, because `read` excludes the time `to`, and the newest line may have the time of this very millisecond.
    const parts = await store.usage.read({ from, to: to + 1, by, user });
    const prices = config.provider !== null && "prices" in config.provider ? (config.provider.prices ?? null) : null;
    return {
      from: new Date(from).toISOString(),
      to: new Date(to).toISOString(),
      by,
      ...reportOf(parts, by, prices),
    };
  }

  static {
    Group.guard(UsageGroup.prototype, {
      report: ["options"],
    });
  }
}

/** The limits of users: how much each user may have. */
export class LimitGroup extends Group {
  /** Returns the limits that apply to a user, and how much of them the user has used. */
  async get(user: string): Promise<LimitView> {
    const { store, config } = this.parts;
    const record = await store.limits.read(user);
    const { limits, sources } = effectiveLimits(config.limits, record);
    const sessions = await store.sessions.count(user);
    const now = Date.now();
    const tokens = async (period: Period) => await store.usage.tokensSince(user, periodOf(period, now).from);
    const used = {
      ...(await store.limits.used(user)),
      sessions,
      tokensPerDay: await tokens("day"),
      tokensPerMonth: await tokens("month"),
    };
    return { user, groups: record?.groups ?? [], limits, used, sources };
  }

  /**
   * Sets limits for one user, which take precedence over those of the configuration. Limits that are not given stay as
   * they are. All hosts apply the new limits within a second. Running turns continue.
   */
  async set(user: string, limits: Partial<Readonly<Record<UserLimit, LimitValue>>>): Promise<LimitView> {
    const { store, events } = this.parts;
    const given = USER_LIMITS.filter((name) => limits[name] !== undefined);
    const detail = given.map((name) => `${name}: ${limits[name] ?? "unlimited"}`).join(", ");
    await audited(events, { type: "limit.set", user, detail }, async () => {
      await store.limits.set(user, (before) => {
        const after: Partial<Record<UserLimit, number | null>> = { ...before.limits };
        for (const name of given) {
          const value = limits[name];
          if (value === "default") delete after[name];
          else after[name] = value === "unlimited" ? null : (value ?? null);
        }
        return { ...before, limits: after };
      });
    });
    return await this.get(user);
  }

  /** Removes all limits that were set for this user. The limits of the configuration then apply again. */
  async clear(user: string): Promise<LimitView> {
    const { store, events } = this.parts;
    await audited(events, { type: "limit.cleared", user }, async () => void (await store.limits.clear(user)));
    return await this.get(user);
  }

  static {
    Group.guard(LimitGroup.prototype, {
      get: ["user"],
      set: ["user", ["limits", readLimits]],
      clear: ["user"],
    });
  }
}

function readLimits(value: unknown, name: string): unknown {
  const given = arg.object(value, name);
  for (const [limit, max] of Object.entries(given)) {
    if (!USER_LIMITS.some((known) => known === limit)) {
      const message = `${quote(limit)} is not a limit. Allowed: ${USER_LIMITS.join(", ")}`;
      throw new FleetError("FLEET_USAGE_INVALID", message);
    }
    if (max !== undefined) arg.limit(max, option(limit));
  }
  return given;
}

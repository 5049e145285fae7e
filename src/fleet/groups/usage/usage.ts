import { type Moment, parseMoment } from "../../../config/values/moment.js";
import { option } from "../../../errors.js";
import { USAGE_BY, type UsageBy } from "../../../model/usage/usage.js";
import { reportOf, type UsageReport } from "../../../usage/ledger/report.js";
import * as arg from "../../arguments.js";
import { Group } from "../group.js";

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
      report: [arg.optional({ ...arg.USER, by: { check: arg.choice(USAGE_BY) }, since: { check: arg.moment } })],
    });
  }
}

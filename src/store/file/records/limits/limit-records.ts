import type { UserLimits } from "../../../../config/limits.js";
import { userDigest } from "../../../../model/ids.js";
import type { UserLimitRecord } from "../../../../model/usage/user-limits.js";
import type { LimitStore } from "../../../ports.js";
import type { StoreContext } from "../../context.js";
import { RecordFiles } from "../record-files.js";

/** The users' own limits and their groups, each in one file for each user. */
export class LimitRecords implements LimitStore {
  readonly #limits: RecordFiles<Pick<UserLimitRecord, "user" | "limits">>;
  readonly #groups: RecordFiles<Pick<UserLimitRecord, "user" | "groups">>;

  constructor(context: StoreContext) {
    const remedy = () => "copilotfleet limit clear --user USER" as const;
    this.#limits = new RecordFiles(context, "limits", remedy);
    // The next sign-on writes a damaged record again.
    this.#groups = new RecordFiles(context, "limit-groups", null);
  }

  async read(user: string): Promise<UserLimitRecord | null> {
    const name = userDigest(user);
    const own = this.#limits.read(name);
    const groups = this.#groups.read(name);
    if (own?.user !== user && groups?.user !== user) return null;
    return { user, limits: own?.limits ?? {}, groups: groups?.groups ?? [] };
  }

  async set(user: string, change: (limits: Partial<UserLimits>) => Partial<UserLimits>): Promise<void> {
    const limits = change(this.#limits.read(userDigest(user))?.limits ?? {});
    if (Object.keys(limits).length === 0) await this.#limits.delete(userDigest(user));
    else await this.#limits.replace(userDigest(user), { user, limits });
  }

  async clear(user: string): Promise<boolean> {
    return await this.#limits.delete(userDigest(user));
  }

  async noteGroups(user: string, groups: readonly string[]): Promise<void> {
    if (groups.length === 0) await this.#groups.delete(userDigest(user));
    else await this.#groups.replace(userDigest(user), { user, groups });
  }
}

import { isDeepStrictEqual } from "node:util";
import type { UserLimits } from "../../../../config/limits.js";
import type { UserLimitRecord } from "../../../../model/usage/user-limits.js";
import type { LimitStore } from "../../../ports.js";
import type { Documents } from "../documents.js";
import { RecordSet } from "../record-set.js";

/** How long a process may rely on its last read of a user's record, in milliseconds. */
const KNOWN_MS = 1_000;
const MOST_KNOWN = 10_000;

/** The users' own limits and their groups, as one document for each user. */
export class LimitDocuments implements LimitStore {
  readonly #records: RecordSet<Omit<UserLimitRecord, "user">>;
  /** The records that were read within the last second, so that most turns of a front door read none. */
  readonly #known = new Map<string, { atMs: number; record: Promise<UserLimitRecord | null> }>();

  constructor(documents: Documents) {
    const { keys } = documents;
    this.#records = new RecordSet(documents, keys.limits, (user) => keys.limitsOf(user));
  }

  async read(user: string): Promise<UserLimitRecord | null> {
    const now = performance.now();
    const known = this.#known.get(user);
    if (known !== undefined && now - known.atMs < KNOWN_MS) return await known.record;
    if (this.#known.size >= MOST_KNOWN) this.#known.clear();
    const record = this.#records.read(user).then((found) => found && { user, ...found });
    this.#known.set(user, { atMs: now, record });
    try {
      return await record;
    } catch (error) {
      this.#known.delete(user);
      throw error;
    }
  }

  async set(user: string, change: (limits: Partial<UserLimits>) => Partial<UserLimits>): Promise<void> {
    await this.#change(user, ({ limits, groups }) => ({ limits: change(limits), groups }));
  }

  async clear(user: string): Promise<boolean> {
    let had = false;
    await this.#change(user, ({ limits, groups }) => {
      had = Object.keys(limits).length > 0;
      return { limits: {}, groups };
    });
    return had;
  }

  async noteGroups(user: string, groups: readonly string[]): Promise<void> {
    await this.#change(user, ({ limits }) => ({ limits, groups }));
  }

  async #change(
    user: string,
    change: (record: Omit<UserLimitRecord, "user">) => Omit<UserLimitRecord, "user">,
  ): Promise<void> {
    for (;;) {
      const found = await this.#records.find(user);
      const before = found?.record ?? { limits: {}, groups: [] };
      const after = change(before);
      const isEmpty = Object.keys(after.limits).length + after.groups.length === 0;
      if (isDeepStrictEqual(before, after)) return;
      const stored = found?.stored ?? null;
      const isDone = isEmpty
        ? (await this.#records.remove(user, stored)) !== "conflict"
        : await this.#records.commit(user, stored, JSON.stringify(after));
      this.#known.delete(user);
      if (isDone) return;
    }
  }
}

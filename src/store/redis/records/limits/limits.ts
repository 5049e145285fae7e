import { isDeepStrictEqual } from "node:util";
import type {
  OwnLimits,
  Slot,
  SlotAnswer,
  SlotRequest,
  SlotsUsed,
  UserLimitRecord,
} from "../../../../model/usage/user-limits.js";
import { type LimitStore, NEAR_MS } from "../../../usage/limits-port.js";
import { FIRST } from "../../scripts/slot-scripts.js";
import { type Documents, newId } from "../documents.js";
import { RecordSet } from "../record-set.js";
import { RedisSlots } from "./slots.js";

/** How long a process may rely on its last read of a user's record, in milliseconds. */
const KNOWN_MS = 1_000;
const MOST_KNOWN = 10_000;

/** The users' own limits and their groups, in one document for each user, and the slots that users have in use. */
export class LimitDocuments implements LimitStore {
  readonly #documents: Documents;
  readonly #slots: RedisSlots;
  readonly #records: RecordSet<Omit<UserLimitRecord, "user">>;
  /** The records that were read within the last second. Because of them, a front door reads no record in most turns. */
  readonly #known = new Map<string, { atMs: number; record: Promise<UserLimitRecord | null> }>();

  constructor(documents: Documents) {
    const { connection, keys } = documents;
    this.#documents = documents;
    this.#slots = new RedisSlots(connection, keys);
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

  async list(): Promise<UserLimitRecord[]> {
    return [...(await this.#records.list())].map(([user, record]) => ({ user, ...record }));
  }

  async set(user: string, change: (own: OwnLimits) => OwnLimits): Promise<void> {
    await this.#change(user, ({ groups, ...own }) => ({ ...change(own), groups }));
  }

  async clear(user: string): Promise<boolean> {
    let had = false;
    await this.#change(user, (record) => {
      had = Object.keys(record.limits).length > 0;
      return { ...record, limits: {} };
    });
    return had;
  }

  async noteGroups(user: string, groups: readonly string[]): Promise<void> {
    await this.#change(user, (record) => ({ ...record, groups }));
  }

  async take(request: SlotRequest): Promise<SlotAnswer> {
    return await this.#slots.take(request);
  }

  async giveBack(slot: Slot, hasBegun: boolean): Promise<void> {
    await this.#slots.giveBack(slot, hasBegun);
  }

  async used(user: string): Promise<SlotsUsed> {
    return await this.#slots.used(user);
  }

  async isFirst(user: string, name: string, from: number): Promise<boolean> {
    const { connection, keys } = this.#documents;
    const [word] = await connection.run(FIRST, [keys.near(user, name)], [from, newId(), NEAR_MS]);
    return word === "first";
  }

  async forget(user: string): Promise<void> {
    await this.#change(user, () => ({ limits: {}, groups: [] }));
    await this.#slots.forget(user);
  }

  /** Ends the renewal of slots. */
  stop(): void {
    this.#slots.stop();
  }

  async #change(
    user: string,
    change: (record: Omit<UserLimitRecord, "user">) => Omit<UserLimitRecord, "user">,
  ): Promise<void> {
    for (;;) {
      const found = await this.#records.find(user);
      const before = found?.record ?? { limits: {}, groups: [] };
      const after = change(before);
      const isEmpty = Object.keys(after.limits).length + after.groups.length === 0 && after.suspended === undefined;
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

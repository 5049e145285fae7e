import { isDeepStrictEqual } from "node:util";
import {
  MINUTE_MS,
  type OwnLimits,
  type Slot,
  type SlotAnswer,
  type SlotKind,
  type SlotRequest,
  type SlotsUsed,
  type UserLimitRecord,
} from "../../base/usage.js";
import { USER_LIMITS } from "../../base/user-limits.js";
import { hasGone, type LimitStore, NEAR_MS, ownHolder } from "../ports.js";
import type { Connection } from "./connection.js";
import { type Documents, newId, RecordSet } from "./documents.js";
import type { Keys } from "./failures.js";
import { CLEAR, FIRST, GIVE_BACK, KEEP, TAKE, USED } from "./scripts.js";

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

/** How long a slot lasts without a renewal, and how often its process renews it, in milliseconds. */
const TTL_MS = 30_000;
const KEEP_MS = 10_000;
/** How many slots one script renews. */
const KEPT_AT_ONCE = 500;
const KINDS = ["turn", "session", "connection"] as const satisfies SlotKind[];

/**
 * The slots that users have in use. The id of each slot ends with the text of its holder, so that
 * other processes of the same machine can free the slot once the holder has ended.
 */
class RedisSlots {
  readonly #connection: Connection;
  readonly #keys: Keys;
  /** The slots that this process renews: for each id, the key of the set that contains it. */
  readonly #held = new Map<string, string>();
  #timer: NodeJS.Timeout | undefined;

  constructor(connection: Connection, keys: Keys) {
    this.#connection = connection;
    this.#keys = keys;
  }

  async take(request: SlotRequest): Promise<SlotAnswer> {
    const answer = await this.#take(request);
    if (answer.granted) return answer;
    const gone = answer.slots.filter((id) => hasGone(id.slice(id.lastIndexOf("~") + 1)) === true);
    if (gone.length > 0) {
      await this.#connection.run(GIVE_BACK, this.#keysOf(request), ["1", ...gone]);
      return await this.#take(request);
    }
    const { slots: _, ...refusal } = answer;
    return refusal;
  }

  async #take(
    request: SlotRequest,
  ): Promise<{ granted: true } | (Extract<SlotAnswer, { granted: false }> & { slots: string[] })> {
    const { user, kind, most, perMinute } = request;
    const id = idOf(request);
    const recorded = user === null ? this.#keys.sessions : this.#keys.ownedBy(user);
    const [slots, begun] = this.#keysOf(request);
    const isTurn = kind === "turn" || kind === "prompt";
    const ttl = kind === "prompt" ? "" : TTL_MS;
    const flags = [isTurn ? "1" : "0", kind === "session" ? "1" : "0", MINUTE_MS];
    const [word, used, waitMs, ...taken] = await this.#connection.run(
      TAKE,
      [slots, begun, recorded],
      [id, most ?? "", perMinute ?? "", ttl, ...flags],
    );
    if (word === "granted") {
      if (kind !== "prompt") this.#hold(id, slots);
      return { granted: true };
    }
    const retryAfterMs = word === "perMinute" ? Math.max(1, Math.ceil(Number(waitMs))) : null;
    const reached = word === "perMinute" ? "perMinute" : "most";
    return { granted: false, reached, used: Number(used), retryAfterMs, slots: taken.map(String) };
  }

  async giveBack(slot: Slot, hasBegun: boolean): Promise<void> {
    const id = idOf(slot);
    this.#held.delete(id);
    if (this.#held.size === 0) this.#stop();
    // If Redis does not answer, the slot ends when it expires.
    await this.#connection.run(GIVE_BACK, this.#keysOf(slot), [hasBegun ? "1" : "0", id]).catch(() => "it expires");
  }

  async used(user: string): Promise<SlotsUsed> {
    const slots = (kind: SlotKind) => this.#keys.slots(kind, user);
    const keys = [this.#keys.begun(user), slots("turn"), slots("connection")];
    const [, begun, turns, connections] = await this.#connection.run(USED, keys, [MINUTE_MS]);
    return {
      turnsPerMinute: Number(begun),
      concurrentTurns: Number(turns),
      connections: Number(connections),
    };
  }

  async forget(user: string): Promise<void> {
    const slots = KINDS.map((kind) => this.#keys.slots(kind, user));
    // Do not renew these slots any more, because a renewal would create their keys again.
    for (const [id, key] of this.#held) if (slots.includes(key)) this.#held.delete(id);
    const near = USER_LIMITS.map((name) => this.#keys.near(user, name));
    await this.#connection.run(CLEAR, [...slots, this.#keys.begun(user), ...near], []);
  }

  stop(): void {
    this.#stop();
    this.#held.clear();
  }

  #hold(id: string, slots: string): void {
    this.#held.set(id, slots);
    this.#timer ??= setInterval(() => void this.#keep(), KEEP_MS).unref();
  }

  #stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  /** Renews the slots of this process. Never rejects. */
  async #keep(): Promise<void> {
    const held = [...this.#held];
    for (let at = 0; at < held.length; at += KEPT_AT_ONCE) {
      const part = held.slice(at, at + KEPT_AT_ONCE).filter(([id]) => this.#held.has(id));
      const [ids, keys] = [part.map(([id]) => id), part.map(([, slots]) => slots)];
      if (part.length > 0) await this.#connection.run(KEEP, keys, [TTL_MS, ...ids]).catch(() => "the next one does it");
    }
  }

  #keysOf({ user, kind }: Pick<Slot, "user" | "kind">): [slots: string, begun: string] {
    return [this.#keys.slots(kind, user ?? ""), this.#keys.begun(user ?? "")];
  }
}

function idOf({ id }: Pick<Slot, "id">): string {
  return `${id}~${ownHolder()}`;
}

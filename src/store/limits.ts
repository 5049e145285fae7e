import { userDigest } from "../base/ids.js";
import { system } from "../base/system/system.js";
import {
  MINUTE_MS,
  type OwnLimits,
  type Slot,
  type SlotAnswer,
  type SlotKind,
  type SlotRequest,
  type SlotsUsed,
  type UserLimitRecord,
} from "../base/usage.js";
import { type FleetRows, kind } from "./rows.js";
import type { SessionTable } from "./sessions.js";
import { Table } from "./table.js";

export const LIMITS = kind<UserLimitRecord>("limits");
export const SLOTS = kind<SlotsRecord>("slots", {
  home: "use",
  endsAt: ({ slots, begun, nearUntil }) =>
    Math.max(nearUntil, ...slots.map(({ endsAt }) => endsAt), ...begun.map(({ at }) => at + MINUTE_MS)),
});

/** The slots of one user, or of all users together. All times are of the database's clock, in milliseconds. */
interface SlotsRecord {
  slots: { id: string; kind: SlotKind; holder: string; endsAt: number }[];
  /** The turns and further prompts that began in the last minute. */
  begun: { id: string; at: number }[];
  /** For each limit, the start of the last period in which it was nearly used up, in milliseconds since the epoch. */
  near: Record<string, number>;
  /** When `near` may be forgotten. */
  nearUntil: number;
}

/** How long a process may rely on its last read of a user's limits, in milliseconds. */
const KNOWN_MS = 1_000;
const MOST_KNOWN = 10_000;
/** How long a slot lasts without a renewal, and how often its process renews it, in milliseconds. */
const TTL_MS = 30_000;
const KEEP_MS = 10_000;
/** The id of the record about all users together. No digest of a user has this form. */
const EVERYBODY = "all";
/** How long a call of `isFirst` is remembered, in milliseconds. Longer than a month, the longest period. */
const NEAR_MS = 32 * 24 * 3_600_000;

/** The users' own limits, suspensions and groups, and the slots that users have in use. */
export class LimitTable {
  readonly #limits: Table<UserLimitRecord>;
  readonly #slots: Table<SlotsRecord>;
  readonly #sessions: Pick<SessionTable, "ids">;
  /** The limits that were read within the last second. Because of them, a front door reads nothing in most turns. */
  readonly #known = new Map<string, { atMs: number; record: Promise<UserLimitRecord | null> }>();
  /** The slots that this process renews: for each id of a record, the ids of its slots. */
  readonly #held = new Map<string, Set<string>>();
  #timer: NodeJS.Timeout | undefined;

  constructor(rows: FleetRows, sessions: Pick<SessionTable, "ids">) {
    this.#limits = new Table(rows, LIMITS);
    this.#slots = new Table(rows, SLOTS);
    this.#sessions = sessions;
  }

  /**
   * The user's own limits, suspension and groups; null if there are none. Another host may see a change up to a second
   * late.
   */
  async read(user: string): Promise<UserLimitRecord | null> {
    const atMs = performance.now();
    const known = this.#known.get(user);
    if (known !== undefined && atMs - known.atMs < KNOWN_MS) return await known.record;
    if (this.#known.size >= MOST_KNOWN) this.#known.clear();
    const record = this.#limits.read(user);
    this.#known.set(user, { atMs, record });
    try {
      return await record;
    } catch (error) {
      this.#known.delete(user);
      throw error;
    }
  }

  /** The records of all users. Costs one read per record. */
  async list(): Promise<UserLimitRecord[]> {
    return await this.#limits.list();
  }

  /** Changes the user's own limits and suspension. `change` must be free of side effects, because it may run again. */
  async set(user: string, change: (own: OwnLimits) => OwnLimits): Promise<void> {
    await this.#change(user, ({ groups, user: _, ...own }) => ({ ...change(own), groups }));
  }

  /** Removes the user's own limits, but not a suspension. Resolves with true if there were any. */
  async clear(user: string): Promise<boolean> {
    let had = false;
    await this.#change(user, (record) => {
      had = Object.keys(record.limits).length > 0;
      return { ...record, limits: {} };
    });
    return had;
  }

  /** Replaces the user's groups. */
  async noteGroups(user: string, groups: readonly string[]): Promise<void> {
    await this.#change(user, (record) => ({ ...record, groups }));
  }

  /**
   * Takes a slot if the limits in the request allow it. All processes on all hosts together never exceed these limits.
   * A slot ends when it is given back, or some time after its process has ended.
   */
  async take({ user, kind, id, most, perMinute }: SlotRequest): Promise<SlotAnswer> {
    const name = nameOf(user);
    const look = async () => (kind === "session" && most !== null ? await this.#sessions.ids(user) : []);
    const take = (draft: { record: SlotsRecord | null }, now: number, recorded: readonly string[]): SlotAnswer => {
      const record = current(draft.record, now);
      let refusal = reached(record, { kind, most, perMinute }, now, recorded);
      // Look for the processes of the slots only before a refusal, because that takes longer than everything else.
      if (refusal !== null) {
        record.slots = record.slots.filter(isHeld);
        refusal = reached(record, { kind, most, perMinute }, now, recorded);
      }
      if (refusal !== null) return refusal;
      if (kind !== "prompt") record.slots.push({ id, kind, holder: ownHolder(), endsAt: now + TTL_MS });
      if (kind === "turn" || kind === "prompt") record.begun.push({ id, at: now });
      draft.record = record;
      return { granted: true };
    };
    const answer = await this.#slots.update(name, take, look);
    if (answer.granted && kind !== "prompt") this.#hold(name, id);
    return answer;
  }

  /**
   * Gives a slot back. If the medium fails, resolves anyway, and the slot ends later.
   *
   * @param hasBegun whether the turn began, so that it still counts for the turns per minute
   */
  async giveBack({ user, id }: Slot, hasBegun: boolean): Promise<void> {
    const name = nameOf(user);
    this.#release(name, id);
    const end = (draft: { record: SlotsRecord | null }, now: number) => {
      if (draft.record === null) return;
      const record = current(draft.record, now);
      draft.record = {
        ...record,
        slots: record.slots.filter((slot) => slot.id !== id),
        begun: record.begun.filter((each) => hasBegun || each.id !== id),
      };
    };
    // If the medium fails, the slot ends because nobody renews it.
    await this.#slots.update(name, end).catch(() => "it expires");
  }

  /** How many slots the user has, and how many turns of the user began in the last minute. */
  async used(user: string): Promise<SlotsUsed> {
    const [record, now] = await Promise.all([this.#slots.read(nameOf(user)), this.#slots.rows.now(SLOTS)]);
    const { slots, begun } = current(record, now);
    const count = (kind: SlotKind) => slots.filter((slot) => slot.kind === kind && isHeld(slot)).length;
    return { turnsPerMinute: begun.length, concurrentTurns: count("turn"), connections: count("connection") };
  }

  /**
   * True only for the first call, among all hosts, about this limit and period, and only if there was no call about a
   * later period. So only one process records that the user is near the limit.
   *
   * @param name the name of the limit
   * @param from the start of the period
   */
  async isFirst(user: string, name: string, from: number): Promise<boolean> {
    return await this.#slots.update(nameOf(user), (draft, now) => {
      const record = current(draft.record, now);
      const last = record.near[name];
      if (last !== undefined && last >= from && last < from + NEAR_MS) return false;
      record.near[name] = from;
      record.nearUntil = now + NEAR_MS;
      draft.record = record;
      return true;
    });
  }

  /** Deletes everything about the user. */
  async forget(user: string): Promise<void> {
    await this.#change(user, () => ({ limits: {}, groups: [] }));
    this.#held.delete(nameOf(user));
    await this.#slots.delete(nameOf(user));
  }

  /** Ends the renewal of slots. */
  stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#held.clear();
  }

  async #change(user: string, change: (record: UserLimitRecord) => Omit<UserLimitRecord, "user">): Promise<void> {
    await this.#limits.update(user, (draft) => {
      const record = { user, ...change(draft.record ?? { user, limits: {}, groups: [] }) };
      const isEmpty = Object.keys(record.limits).length + record.groups.length === 0 && record.suspended === undefined;
      draft.record = isEmpty ? null : record;
    });
    this.#known.delete(user);
  }

  #hold(name: string, id: string): void {
    this.#held.set(name, (this.#held.get(name) ?? new Set()).add(id));
    this.#timer ??= setInterval(() => void this.#keep(), KEEP_MS).unref();
  }

  #release(name: string, id: string): void {
    const ids = this.#held.get(name);
    ids?.delete(id);
    if (ids?.size === 0) this.#held.delete(name);
    if (this.#held.size === 0) this.stop();
  }

  /** Renews the slots of this process. Never rejects. */
  async #keep(): Promise<void> {
    for (const [name, ids] of this.#held) {
      const renew = ({ record }: { record: SlotsRecord | null }, now: number) => {
        for (const slot of record?.slots ?? []) if (ids.has(slot.id)) slot.endsAt = now + TTL_MS;
      };
      await this.#slots.update(name, renew).catch(() => "the next one does it");
    }
  }
}

function nameOf(user: string | null): string {
  return user === null ? EVERYBODY : userDigest(user);
}

/** The id of the session in the id of its slot. */
function sessionOf(slotId: string): string {
  return slotId.split("~")[0] ?? slotId;
}

/** The record without slots that have ended, and without turns that began more than a minute ago. */
function current(record: SlotsRecord | null, now: number): SlotsRecord {
  const { slots, begun, ...rest } = record ?? { slots: [], begun: [], near: {}, nearUntil: 0 };
  return {
    ...rest,
    slots: slots.filter(({ endsAt }) => endsAt > now),
    begun: begun.filter(({ at }) => at > now - MINUTE_MS),
  };
}

/** Whether the process that has the slot may still run. */
function isHeld({ holder }: { holder: string }): boolean {
  return hasGone(holder) !== true;
}

/** @param recorded the ids of the user's sessions, if sessions are limited */
function reached(
  { slots, begun }: SlotsRecord,
  { kind, most, perMinute }: Pick<SlotRequest, "kind" | "most" | "perMinute">,
  now: number,
  recorded: readonly string[],
): Extract<SlotAnswer, { granted: false }> | null {
  if (perMinute !== null && begun.length >= perMinute) {
    // The start of the turn that must become more than a minute old before another turn may begin.
    const leaving = begun[begun.length - perMinute]?.at ?? now;
    const retryAfterMs = Math.max(1, Math.ceil(leaving + MINUTE_MS - now));
    return { granted: false, reached: "perMinute", used: begun.length, retryAfterMs };
  }
  if (most === null) return null;
  const taken = slots.filter((slot) => slot.kind === kind).map((slot) => slot.id);
  const used = kind === "session" ? new Set([...recorded, ...taken.map(sessionOf)]).size : taken.length;
  return used < most ? null : { granted: false, reached: "most", used, retryAfterMs: null };
}

/* A holder is a text that identifies the process that has a slot: its boot, PID namespace, PID and start time. */

let own: string | undefined;

/** Identifies the current boot of this machine by 8 letters and digits. */
function bootName(): string {
  return system()
    .clock.bootId()
    .replace(/[^a-z0-9]/gi, "")
    .toLowerCase()
    .slice(0, 8)
    .padEnd(8, "0");
}

export function ownHolder(): string {
  own ??= holderOf(process.pid, system().processes.find(process.pid)?.started ?? "");
  return own;
}

function holderOf(pid: number, started: string): string {
  const namespace = system().processes.namespace().replace(/\D/g, "");
  return [bootName(), namespace, pid, started.replace(/\W/g, "_")].join(".");
}

/** Whether the holder has ended. Null if this process cannot check that, because the boot or PID namespace differs. */
function hasGone(holder: string): boolean | null {
  const [boot, namespace, pid = ""] = holder.split(".");
  const [ownBoot, ownNamespace] = ownHolder().split(".");
  if (boot !== ownBoot || namespace !== ownNamespace || !/^\d+$/.test(pid)) return null;
  const found = system().processes.find(Number(pid));
  return found === null || holderOf(found.pid, found.started) !== holder;
}

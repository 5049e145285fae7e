import { MINUTE_MS, type SlotKind } from "../../../../model/usage/user-limits.js";

/** An entry of the log, as JSON. `id` is random, so no two entries are equal. */
export type Entry =
  | readonly [
      "take",
      id: string,
      kind: SlotKind,
      holder: string,
      atMs: number,
      most: number | null,
      perMinute: number | null,
    ]
  | readonly ["end", id: string, began: boolean, by: string]
  | readonly ["slot", id: string, kind: SlotKind, holder: string]
  | readonly ["begun", id: string, atMs: number]
  | readonly ["seal"];

/** The answer to an entry. Only a `take` can be refused. */
export type Answer =
  | { granted: true; earlier: readonly string[] }
  | { granted: false; reached: "most" | "perMinute"; used: number; retryAfterMs: number | null };

interface Slot {
  kind: SlotKind;
  holder: string;
}

export function readEntry(line: string): Entry | null {
  if (!line.startsWith("[")) return null;
  try {
    return JSON.parse(line) as Entry;
  } catch {
    return null; // a full disk cut the line off
  }
}

/** The state after some entries. It depends on the entries alone, so every process computes the same state. */
export class SlotState {
  readonly slots = new Map<string, Slot>();
  /** When each turn of the last minute began, in milliseconds since the boot of the machine. */
  readonly begun = new Map<string, number>();
  isSealed = false;
  #lastMs = 0;

  apply(entry: Entry): Answer {
    switch (entry[0]) {
      case "take":
        return this.#take(entry);
      case "end":
        this.slots.delete(entry[1]);
        if (!entry[2]) this.begun.delete(entry[1]);
        break;
      case "slot":
        this.slots.set(entry[1], { kind: entry[2], holder: entry[3] });
        break;
      case "begun":
        this.begun.set(entry[1], entry[2]);
        break;
      case "seal":
        this.isSealed = true;
        break;
    }
    return { granted: true, earlier: [] };
  }

  #take([, id, kind, holder, atMs, most, perMinute]: Extract<Entry, readonly ["take", ...unknown[]]>): Answer {
    this.#lastMs = Math.max(this.#lastMs, atMs);
    for (const [old, begunMs] of this.begun) if (begunMs <= this.#lastMs - MINUTE_MS) this.begun.delete(old);
    const earlier = this.idsOf(kind);
    if (perMinute !== null && this.begun.size >= perMinute) {
      // The start of the turn that must become more than a minute old before another turn may begin.
      const leaving = [...this.begun.values()].sort((a, b) => a - b)[this.begun.size - perMinute] ?? atMs;
      const retryAfterMs = Math.max(1, Math.ceil(leaving + MINUTE_MS - atMs));
      return { granted: false, reached: "perMinute", used: this.begun.size, retryAfterMs };
    }
    if (most !== null && earlier.length >= most)
      return { granted: false, reached: "most", used: earlier.length, retryAfterMs: null };
    if (kind !== "prompt") this.slots.set(id, { kind, holder });
    if (kind === "turn" || kind === "prompt") this.begun.set(id, atMs);
    return { granted: true, earlier };
  }

  idsOf(kind: SlotKind): string[] {
    return [...this.slots].filter(([, slot]) => slot.kind === kind).map(([id]) => id);
  }

  /** How many turns began in the minute before this time. */
  begunSince(nowMs: number): number {
    return [...this.begun.values()].filter((atMs) => atMs > nowMs - MINUTE_MS).length;
  }

  /** The number of entries in {@link start}. */
  get size(): number {
    return this.slots.size + this.begun.size;
  }

  /** The entries with which a new log begins, so that its state is the same as this state. */
  start(): Entry[] {
    const slots = [...this.slots].map(([id, { kind, holder }]) => ["slot", id, kind, holder] as const);
    return [...slots, ...[...this.begun].map(([id, atMs]) => ["begun", id, atMs] as const)];
  }
}

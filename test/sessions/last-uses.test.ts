import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { FleetError } from "../../src/base/errors.js";
import type { SessionRecord } from "../../src/base/session.js";
import { LastUses } from "../../src/sessions/use/last-uses.js";
import type { Store } from "../../src/store/store.js";
import { sessionRecord } from "../fixtures/store/store-records.js";

const NOW = Date.UTC(2026, 0, 1, 12);
const at = (sinceMs: number) => new Date(NOW + sinceMs).toISOString();
const recent = (id: string) => sessionRecord(id, { turns: 1, lastUsedAt: at(-1_000) });

/** Sessions in memory. A test can make the next writes fail. */
class Sessions {
  readonly records = new Map<string, SessionRecord>();
  /** The ids that were written, in order. */
  readonly writes: string[] = [];
  failure: Error | undefined;

  /** The part of the store that LastUses needs. */
  get store(): Pick<Store, "sessions"> {
    return { sessions: { update: this.#update } } as unknown as Pick<Store, "sessions">;
  }

  readonly #update = async <T>(id: string, change: (draft: SessionRecord) => T): Promise<T> => {
    await Promise.resolve();
    this.writes.push(id);
    if (this.failure !== undefined) throw this.failure;
    const record = this.records.get(id);
    if (record === undefined) throw new FleetError("FLEET_SESSION_NOT_FOUND", "There is no such session.");
    return change(record);
  };
}

describe("LastUses", () => {
  let sessions: Sessions;
  let uses: LastUses;
  beforeEach(() => {
    vi.useFakeTimers({ now: NOW });
    sessions = new Sessions();
    uses = new LastUses(sessions.store);
  });
  afterEach(() => void vi.useRealTimers());

  const add = (record: SessionRecord) => {
    sessions.records.set(record.id, { ...record });
    return record;
  };

  it("LastUses records turns that end within two seconds in one write, with their number and the last end", async () => {
    const a = add(recent("a"));
    const first = uses.note(a);
    await vi.advanceTimersByTimeAsync(1_900);
    const second = uses.note(a);
    expect(sessions.writes).toEqual([]);
    await vi.advanceTimersByTimeAsync(100);
    expect(sessions.writes).toEqual(["a"]);
    expect(await first).toMatchObject({ turns: 3, lastUsedAt: at(1_900) });
    expect(await second).toMatchObject({ turns: 3, lastUsedAt: at(1_900) });
  });

  it.each([
    ["the first turn of a session", { turns: 0, lastUsedAt: at(-1_000) }],
    ["a turn after a pause of more than a minute", { turns: 4, lastUsedAt: at(-60_001) }],
    ["a turn of a session with a damaged date", { turns: 4, lastUsedAt: "yesterday" }],
  ])("LastUses writes %s at once", async (_, over) => {
    const a = add(sessionRecord("a", over));
    expect(await uses.note(a)).toMatchObject({ turns: over.turns + 1, lastUsedAt: at(0) });
  });

  it("LastUses does not replace a later time of use that another process has recorded", async () => {
    const a = add(recent("a"));
    void uses.note(a);
    add({ ...a, lastUsedAt: at(500), turns: 7 });
    await vi.advanceTimersByTimeAsync(2_000);
    expect(sessions.records.get("a")).toMatchObject({ turns: 8, lastUsedAt: at(500) });
  });

  it("LastUses writes nothing for a session that was deleted", async () => {
    const noted = uses.note(recent("a"));
    await uses.flush();
    expect(await noted).toBeNull();
  });
});

import { beforeEach, expect, it } from "vitest";
import type { LedgerLine, UsageBy, UsagePart } from "../../src/base/usage.js";
import type { Store } from "../../src/store/store.js";

const HOUR_MS = 3_600_000;
/** Tests count tokens from this moment, not from the beginning of a day, because a day may end during a test. */
const STARTED = Date.now();

/** The two ledger lines of a request with 10 input tokens and 5 output tokens. */
export function requestLines(id: string, changes: Partial<LedgerLine> = {}): [LedgerLine, LedgerLine] {
  const begun: LedgerLine = {
    id,
    at: new Date().toISOString(),
    kind: "request",
    user: "ann",
    sessionId: "s1",
    model: "gpt-5",
    host: null,
    tokenId: null,
    inputTokens: null,
    outputTokens: null,
    cacheReadTokens: null,
    credits: null,
    ms: null,
    outcome: "begun",
    ...changes,
  };
  return [begun, { ...begun, inputTokens: 10, outputTokens: 5, ms: 3, outcome: "completed" }];
}

/** The tests of the ledger that every store must pass. */
export function describeUsage(current: () => { store: Store; reopen: () => Promise<Store> }): void {
  let store: Store;
  let reopen: () => Promise<Store>;

  beforeEach(() => {
    ({ store, reopen } = current());
  });

  const all = { from: 0, to: Date.now() + 1_000_000 };
  const read = async (by: UsageBy = "user", changes: { user?: string; from?: number; to?: number } = {}) =>
    (await store.usage.read({ ...all, by, ...changes })).sort((a, b) => String(a.key).localeCompare(String(b.key)));
  const ann = { key: "ann", user: "ann", model: "gpt-5", turns: 0, cacheReadTokens: null, credits: null };

  it("the store has no usage before the first line", async () => {
    expect(await read()).toEqual([]);
    expect(await store.usage.tokensSince("ann", STARTED)).toBe(0);
    await store.usage.upkeep(HOUR_MS);
    await store.usage.settled();
  });

  it("the store adds up the lines of all instances, and counts an unfinished request with unknown tokens", async () => {
    const other = await reopen();
    const [cut] = requestLines("3", { user: "bob" });
    expect(store.usage.append(requestLines("1"))).toBe(2);
    expect(other.usage.append([...requestLines("2"), cut])).toBe(3);
    await other.usage.settled();
    expect(await read()).toEqual([
      { ...ann, requests: 2, inputTokens: 20, outputTokens: 10 },
      { ...ann, key: "bob", user: "bob", requests: 1, inputTokens: null, outputTokens: null },
    ]);
    expect(await store.usage.tokensSince("ann", STARTED)).toBe(30);
    expect(await other.usage.tokensSince("bob", STARTED)).toBe(0);
    await other.close();
  });

  it("the store groups usage by session, model, token and day, and can count a single user", async () => {
    const [turn] = requestLines("t", { kind: "turn", at: "2026-11-01T23:59:59.999Z" });
    store.usage.append([turn, ...requestLines("1", { tokenId: "k1", at: "2026-11-02T00:00:00.000Z" })]);
    store.usage.append(
      requestLines("2", { user: "bob", sessionId: "s2", model: null, at: "2026-11-02T00:00:00.000Z" }),
    );
    const keys = async (by: UsageBy) => (await read(by)).map(({ key, turns, requests }) => [key, turns, requests]);
    expect(await keys("session")).toEqual([
      ["s1", 1, 1],
      ["s2", 0, 1],
    ]);
    expect(await keys("model")).toEqual([
      ["gpt-5", 1, 1],
      [null, 0, 1],
    ]);
    expect(await keys("token")).toEqual([
      ["k1", 0, 1],
      [null, 1, 0],
      [null, 0, 1],
    ]);
    expect(await keys("day")).toEqual([
      ["2026-11-01", 1, 0],
      ["2026-11-02", 0, 1],
      ["2026-11-02", 0, 1],
    ]);
    expect((await read("session", { user: "bob" })).map(({ key }) => key)).toEqual(["s2"]);
  });

  it("the store counts only lines of the requested period, exact to the millisecond", async () => {
    const now = Math.floor(Date.now() / HOUR_MS) * HOUR_MS - 90 * 60_000;
    for (const [index, ms] of [-1, 0, HOUR_MS, 2 * HOUR_MS - 1, 2 * HOUR_MS].entries())
      store.usage.append(requestLines(String(index), { at: new Date(now + ms).toISOString() }));
    const [part] = await read("user", { from: now, to: now + 2 * HOUR_MS });
    expect(part?.requests).toBe(3);
  });

  it("the store distinguishes a reported 0 from a number that was not reported", async () => {
    const [begun, ended] = requestLines("1");
    store.usage.append([begun, { ...ended, inputTokens: 0, outputTokens: null, credits: 0.25 }]);
    expect(await read()).toEqual([{ ...ann, requests: 1, inputTokens: 0, outputTokens: null, credits: 0.25 }]);
  });

  it("rename() of a session does not rename a user with the same name, and vice versa", async () => {
    store.usage.append(requestLines("1", { user: "ann", sessionId: "ben" }));
    store.usage.append(requestLines("2", { user: "ben", sessionId: "ann" }));
    await store.usage.rename({ users: new Map([["ann", "~1"]]), sessions: new Map([["ben", "~2"]]) });
    expect((await read()).map(({ key }) => key).sort()).toEqual(["ben", "~1"]);
    expect((await read("session")).map(({ key }) => key).sort()).toEqual(["ann", "~2"]);
    expect(await store.usage.tokensSince("ben", STARTED)).toBe(15);
  });

  it("rename() replaces the names of a user and of sessions everywhere, and keeps the numbers", async () => {
    const names = { users: new Map([["ann", "~1"]]), sessions: new Map([["s1", "~2"]]) };
    store.usage.append(requestLines("1"));
    store.usage.append(requestLines("2", { user: 'x","user":"ann","', sessionId: "s2" }));
    await store.usage.rename(names);
    store.usage.append(requestLines("3", { user: "bob" }));
    await store.usage.rename(names);
    const byUser = (part: UsagePart) => [part.key, part.requests, part.inputTokens];
    expect((await read()).map(byUser).sort()).toEqual([
      ["bob", 1, 10],
      ['x","user":"ann","', 1, 10],
      ["~1", 1, 10],
    ]);
    const sessions = (await read("session")).map(({ key }) => key);
    expect([...new Set(sessions)].sort()).toEqual(["s2", "~2"]);
    expect(await store.usage.tokensSince("ann", STARTED)).toBe(0);
    expect(await store.usage.tokensSince("~1", STARTED)).toBe(15);
  });

  it("the store counts each line once when several instances write and count at the same time", async () => {
    const others = await Promise.all([reopen(), reopen()]);
    const write = async (each: Store, name: string) => {
      for (let index = 0; index < 200; index++) {
        each.usage.append(requestLines(`${name}${index}`));
        if (index % 20 === 0) await each.usage.settled();
      }
      await each.usage.settled();
    };
    await Promise.all([store, ...others].map(async (each, index) => await write(each, String(index))));
    expect(await read()).toEqual([{ ...ann, requests: 600, inputTokens: 6000, outputTokens: 3000 }]);
    await Promise.all(others.map(async (other) => await other.close()));
  });
}

import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { KeptSessions } from "../../src/sessions/open-sessions.js";
import type { LocalSession } from "../../src/sessions/use/local-session.js";
import { sessionRecord } from "../fixtures/store/store-records.js";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

const opened = (id: string) => ({ record: sessionRecord(id), close: vi.fn(async () => undefined) });
const asSession = (open: ReturnType<typeof opened>) => open as unknown as LocalSession;
const alice = { user: "alice" };

it("KeptSessions closes a session that nobody has used for a minute", async () => {
  const kept = new KeptSessions();
  const open = opened("a");
  await kept.keep(asSession(open), alice);
  await vi.advanceTimersByTimeAsync(59_000);
  expect(await kept.take(open.record, alice)).toBe(open);
  await kept.keep(asSession(open), alice);
  await vi.advanceTimersByTimeAsync(59_000);
  expect([kept.size, open.close.mock.calls.length]).toEqual([1, 0]);
  await vi.advanceTimersByTimeAsync(2_000);
  expect([kept.size, open.close.mock.calls.length]).toEqual([0, 1]);
});

it("KeptSessions closes a kept session, and does not return it, for another user, other options or a new record", async () => {
  const kept = new KeptSessions();
  for (const [record, keeper] of [
    [sessionRecord("a"), { user: "bob" }],
    [sessionRecord("a"), { user: "alice", interactive: true }],
    [sessionRecord("a", { createdAt: "2027-01-01T00:00:00.000Z" }), alice],
  ] as const) {
    const open = opened("a");
    await kept.keep(asSession(open), alice);
    expect(kept.peek(record, keeper)).toBeNull();
    expect(await kept.take(record, keeper)).toBeNull();
    expect(open.close).toHaveBeenCalledOnce();
  }
});

it("KeptSessions keeps at most 200 sessions, and closes the session that was used least recently", async () => {
  const kept = new KeptSessions();
  const all = Array.from({ length: 201 }, (_, index) => opened(`s${index}`));
  for (const open of all) await kept.keep(asSession(open), alice);
  expect(kept.size).toBe(200);
  expect(all.flatMap(({ close }, index) => (close.mock.calls.length > 0 ? [index] : []))).toEqual([0]);
  await kept.closeAll();
  expect(kept.size).toBe(0);
});

it("KeptSessions.take waits while the session is being closed, and then returns null", async () => {
  const kept = new KeptSessions();
  const open = opened("a");
  let closed = (): void => undefined;
  open.close.mockImplementation(
    async () => await new Promise<undefined>((resolve) => (closed = () => resolve(undefined))),
  );
  await kept.keep(asSession(open), alice);
  const closing = kept.close("a");
  let isTaken = false;
  const taking = kept.take(open.record, alice).then((found) => {
    isTaken = true;
    return found;
  });
  await vi.advanceTimersByTimeAsync(10_000);
  expect(isTaken).toBe(false);
  closed();
  await closing;
  expect(await taking).toBeNull();
});

it("KeptSessions closes each session that it gets after closeAll", async () => {
  const kept = new KeptSessions();
  await kept.closeAll();
  const open = opened("a");
  await kept.keep(asSession(open), alice);
  expect([kept.size, open.close.mock.calls.length]).toEqual([0, 1]);
});

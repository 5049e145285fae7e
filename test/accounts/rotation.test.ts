import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Events, trimEvents } from "../../src/accounts/audit/events.js";
import { verifyLog } from "../../src/accounts/audit/verify.js";
import { ownEvents } from "../../src/hosts/local-host.js";
import { LogDatabase } from "../fixtures/events-log.js";
import { removeFolder } from "../fixtures/remove-folder.js";

const DAY_MS = 24 * 3_600_000;

let root: string;
let database: LogDatabase;
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), "copilotfleet-rotation-"));
  database = new LogDatabase(root);
});
afterEach(async () => {
  vi.useRealTimers();
  await removeFolder(root);
});

const config = { events: { retentionMs: 90 * DAY_MS } };

function openEvents(stateRoot = root, { host = "" } = {}): Events {
  const store = { hosts: host === "" ? null : ({ own: host } as never) };
  return new Events({ store, config, stateRoot, via: "library", warn: () => undefined });
}

const log = (stateRoot: string) => ({ stateRoot, events: { flush: async () => undefined } });

async function write(events: Events, count: number): Promise<void> {
  for (let at = 0; at < count; at++) {
    events.note({ type: "turn.begun", user: "ann" });
    await events.flush();
  }
}

describe("the rotation of the audit log", () => {
  it("verifyLog accepts a log that the fleet shortened, but not one whose first lines were removed", async () => {
    const events = openEvents();
    await write(events, 100);
    await trimEvents({ config, events, stateRoot: root, maxBytes: 40_000 });
    const [first = 0] = database.lines().map(({ seq }) => seq);
    expect(first).toBeGreaterThan(10);
    expect(first).toBeLessThan(90);
    expect((await verifyLog(root)).brokenAt).toBeNull();
    database.remove(first);
    expect((await verifyLog(root)).brokenAt).toMatchObject({ problem: expect.stringContaining("at the beginning") });
  });

  it("the age limit deletes old events, but deletes none because the clock briefly jumps ahead", async () => {
    const events = openEvents();
    const start = Date.now();
    vi.useFakeTimers({ toFake: ["Date"] });
    const at = async (days: number) => {
      vi.setSystemTime(start + days * DAY_MS);
      await write(events, 9);
    };
    for (const days of [0, 1, 2]) await at(days);
    vi.setSystemTime(start + 400 * DAY_MS);
    await write(events, 1);
    await trimEvents({ config, events, stateRoot: root });
    expect(database.lines()[0]?.seq).toBe(1);
    for (const days of [3, 95, 97]) await at(days);
    await trimEvents({ config, events, stateRoot: root });
    // The last three times and the event about the deletion are left.
    expect(database.lines().length).toBe(1 + 9 + 9 + 9 + 1);
    expect((await verifyLog(root)).brokenAt).toBeNull();
  });
});

describe("the events of this host", () => {
  it("ownEvents reads a log in pages, and waits for the next event", async () => {
    const events = openEvents();
    await write(events, 5);
    const own = log(root);
    const first = await ownEvents(own, { limit: 3 });
    expect(first.events.map(({ seq }) => seq)).toEqual([1, 2, 3]);
    expect(first.hasMore).toBe(true);
    const second = await ownEvents(own, { limit: 3, after: first.next });
    expect(second).toMatchObject({ events: [{ seq: 4 }, { seq: 5 }], hasMore: false });
    const waiting = ownEvents(own, { limit: 3, after: second.next, waitMs: 10_000 });
    await write(events, 1);
    expect((await waiting).events).toMatchObject([{ seq: 6, type: "turn.begun" }]);
    expect((await ownEvents(own, { limit: 9, user: "ben" })).events).toEqual([]);
    expect((await ownEvents(own, { limit: 9, types: ["token.issued"] })).events).toEqual([]);
  });
});

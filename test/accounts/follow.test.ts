import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { Events } from "../../src/accounts/audit/events.js";
import type { EventFilter, EventQuery } from "../../src/accounts/audit/query.js";
import type { FleetEvent } from "../../src/base/event.js";
import { type EventPositions, followEvents, gatherEvents } from "../../src/hosts/all-events.js";
import type { FleetHosts } from "../../src/hosts/fleet-hosts.js";
import { ownEvents } from "../../src/hosts/local-host.js";
import { removeFolder } from "../fixtures/remove-folder.js";

const DAY_MS = 24 * 3_600_000;
const START = Date.parse("2026-05-05T00:00:00.000Z");

let root: string;
let over: AbortController;
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), "copilotfleet-follow-"));
  over = new AbortController();
  vi.useFakeTimers({ toFake: ["Date"] });
});
afterEach(async () => {
  over.abort();
  vi.useRealTimers();
  await removeFolder(root);
});

/** Writes an event to a host's log when the host's clock shows `ms`. */
async function write(host: string, ms: number, user: string): Promise<void> {
  vi.setSystemTime(ms);
  const config = { events: { retentionMs: 1e12 } };
  const context = { store: { hosts: { own: host } as never }, config, via: "library", warn: () => undefined } as const;
  const events = new Events({ ...context, stateRoot: join(root, host) });
  events.note({ type: "turn.begun", user });
  await events.close();
}

/**
 * Hosts with these names, each of which reads its log in the test folder. @param onCall is called with the signal of
 * each call that may wait
 */
function hostsOf(names: readonly string[], onCall: (signal: AbortSignal) => void = () => undefined): FleetHosts {
  const hosts = names.map((name) => ({
    name,
    events: async (query: EventQuery & { waitMs?: number }, { signal }: { signal?: AbortSignal } = {}) => {
      if (signal !== undefined) onCall(signal);
      return await ownEvents({ stateRoot: join(root, name), events: { flush: async () => undefined } }, query, signal);
    },
  }));
  const everywhere = async (ask: (host: unknown) => Promise<unknown>) => ({
    answers: await Promise.all(hosts.map(async (host) => ({ host, answer: await ask(host) }))),
    missing: [],
  });
  return { everywhere, others: async () => [] } as unknown as FleetHosts;
}

function follow(hosts: FleetHosts, filter: EventFilter, after?: EventPositions) {
  return followEvents(hosts, filter, { signal: over.signal, warn: () => undefined, after });
}

async function next(events: AsyncGenerator<FleetEvent>): Promise<string | null> {
  const { value } = await events.next();
  return (value as FleetEvent).user;
}

describe("the events of several hosts", () => {
  it("gatherEvents sorts events by time, but keeps each host's own order, even if a clock was set back", async () => {
    await write("a", START + 10, "a1");
    await write("a", START + 5, "a2");
    await write("b", START + 7, "b1");
    const events = await gatherEvents(hostsOf(["a", "b"]), {});
    expect(events.map(({ user }) => user)).toEqual(["b1", "a1", "a2"]);
  });

  it("followEvents omits events before the given time, but reports new ones even if a clock is set back", async () => {
    for (const user of ["old", "older"]) await write("a", START - 5 * DAY_MS, user);
    const following = follow(hostsOf(["a"]), { sinceMs: START });
    const first = next(following);
    await write("a", START, "new");
    expect(await first).toBe("new");
    await write("a", START - 10 * DAY_MS, "newer");
    expect(await next(following)).toBe("newer");
  });

  it("followEvents continues after the caller's positions, even with events before the given time", async () => {
    for (const user of ["a1", "a2", "a3"]) await write("a", START, user);
    for (const user of ["b1", "b2"]) await write("b", START + DAY_MS, user);
    const following = follow(hostsOf(["a", "b"]), { sinceMs: START + DAY_MS }, { a: 2 });
    expect([await next(following), await next(following), await next(following)]).toEqual(["a3", "b1", "b2"]);
  });
});

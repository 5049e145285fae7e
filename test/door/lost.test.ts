import { describe, expect, it } from "vitest";
import type { HostRecord } from "../../src/base/host.js";
import type { ServerRecord } from "../../src/base/server.js";
import { LostHosts, LostServers } from "../../src/door/state/door-state.js";
import { ownIdentity } from "../../src/runtime/process/process-table.js";
import { serverRecord } from "../fixtures/store/store-records.js";

const HOST: HostRecord = {
  name: "h2",
  instance: "i",
  door: "127.0.0.1:1",
  state: "serving",
  startedAt: "2026-01-01T00:00:00.000Z",
  storage: null,
  term: 1,
  gone: false,
  remainingMs: 10_000,
};

describe("LostHosts", () => {
  const make = (takenOver: boolean) => {
    const clock = { ms: 0 };
    const lost = new LostHosts<string>({ takenOver, ttlMs: 15_000 }, { now: () => clock.ms });
    lost.await(HOST, "ann");
    lost.await(HOST, "ben");
    const back = (hosts: readonly HostRecord[]) => lost.back(hosts).flatMap(({ clients }) => [...clients]);
    return { lost, clock, back };
  };

  it.each([true, false])(
    "returns the clients of a lost host after one TTL if the host counts as alive (other hosts take over: %s)",
    (takenOver) => {
      const { clock, back, lost } = make(takenOver);
      expect(back([HOST])).toEqual([]);
      clock.ms = 15_001;
      expect(back([HOST])).toEqual(["ann", "ben"]);
      expect(lost.any).toBe(false);
    },
  );

  it.each([true, false])(
    "returns the clients of a lost host at once when that host has restarted (other hosts take over: %s)",
    (takenOver) => {
      expect(make(takenOver).back([{ ...HOST, startedAt: "2026-01-01T00:00:01.000Z" }])).toEqual(["ann", "ben"]);
    },
  );

  it("returns the clients of a lost host at once when the host is dead and other hosts take over", () => {
    expect(make(true).back([{ ...HOST, gone: true }])).toEqual(["ann", "ben"]);
    expect(make(true).back([])).toEqual(["ann", "ben"]);
  });

  it("waits for a dead host if no other host takes over, and drops its clients after a minute", () => {
    const { clock, back, lost } = make(false);
    clock.ms = 59_000;
    expect(back([{ ...HOST, gone: true }])).toEqual([]);
    expect(lost.any).toBe(true);
    clock.ms = 61_000;
    expect(back([])).toEqual([]);
    expect(lost.any).toBe(false);
  });
});

describe("LostServers", () => {
  const make = (process = ownIdentity()) => {
    const clock = { ms: 0 };
    const lost = new LostServers<string>({ now: () => clock.ms });
    const server = serverRecord("a", { process });
    lost.await(server, "ann");
    const back = (now: Partial<ServerRecord> | null) =>
      lost.back(now === null ? null : { a: { ...server, ...now } }).flatMap(({ clients }) => [...clients]);
    return { lost, clock, back };
  };

  it("returns a lost server's clients when the server has been started again", () => {
    const { back, lost } = make();
    expect(back({ state: "starting", launchId: "next" })).toEqual([]);
    expect(back({ launchId: "next" })).toEqual(["ann"]);
    expect(lost.any).toBe(false);
  });

  it("returns a lost server's clients a second after the loss if the same launch still runs", () => {
    const { back, clock } = make();
    expect(back({})).toEqual([]);
    clock.ms = 1_001;
    expect(back({})).toEqual(["ann"]);
    expect(make({ ...ownIdentity(), startTicks: "1" }).back({ launchId: "next" })).toEqual([]);
  });

  it("waits for a lost server while the registry cannot be read, and drops its clients after a minute", () => {
    const { back, clock, lost } = make();
    clock.ms = 59_000;
    expect(back(null)).toEqual([]);
    clock.ms = 61_000;
    expect(back(null)).toEqual([]);
    expect(lost.any).toBe(false);
  });
});

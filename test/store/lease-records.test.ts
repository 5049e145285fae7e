import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import type { LeaseRequest } from "../../src/base/session.js";
import { type FileStore, openStore } from "../../src/store/store.js";
import { sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const LONG_MS = 600_000;

function request(token: string, over: Partial<LeaseRequest> = {}): LeaseRequest {
  return { sessionId: "a", holder: "alice", token, ttlMs: LONG_MS, placeMs: LONG_MS, ...over };
}

describe("the file store, with leases,", () => {
  let root: string;
  let store: FileStore;

  beforeEach(async () => {
    root = await temporaryRoot();
    store = openStore("file", root);
  });

  const folder = () => join(root, "leases", "a");
  const newest = () => join(folder(), readdirSync(folder()).toSorted().at(-1) ?? "none");

  /** Sweeps, and returns the names of the lease folders that remain. */
  async function swept(): Promise<string[]> {
    await store.sweep();
    return (await readdir(join(root, "leases"))).toSorted();
  }

  it("the lease files contain neither the holder's token nor a waiter's token", async () => {
    await store.leases.acquire(request("holder's secret"));
    await store.leases.acquire(request("waiter's secret"));
    const names = await readdir(folder());
    expect(names.length).toBeGreaterThan(0);
    for (const name of names) expect(readFileSync(join(folder(), name), "utf8")).not.toMatch(/secret/);
  });

  it.each([
    ["back", -365],
    ["ahead", 365],
  ])("a lease ends exactly after its TTL when the wall clock is set %s by a year", async (_, days) => {
    await store.leases.acquire(request("short", { ttlMs: 300 }));
    await store.leases.acquire(request("long", { sessionId: "b" }));
    vi.useFakeTimers({ toFake: ["Date"], now: Date.now() + days * 86_400_000 });
    onTestFinished(() => void vi.useRealTimers());
    expect(await openStore("file", root).leases.check("b", "long")).toMatchObject({ remainingMs: expect.any(Number) });
    await expect.poll(() => store.leases.read("a")).toBeNull();
  });

  it("the store remembers the fence of a deleted session's lease until the wall clock has passed it", async () => {
    await store.sessions.create(sessionRecord("a"));
    const first = await store.leases.acquire(request("t1"));
    await store.leases.acquire(request("waiter"));
    vi.useFakeTimers({ toFake: ["Date"], now: Date.now() - 365 * 86_400_000 });
    onTestFinished(() => void vi.useRealTimers());
    await store.sessions.delete("a");
    await store.sweep();
    await expect(store.leases.check("a", "t1")).rejects.toMatchObject({ code: "FLEET_LEASE_LOST" });
    const second = await store.leases.acquire(request("t2"));
    if (!first.granted || !second.granted) throw new Error("not granted");
    expect(second.lease.fence).toBeGreaterThan(first.lease.fence);
    await store.leases.release("a", "t2");
    vi.useRealTimers();
    await expect.poll(swept).toEqual([]);
  });

  it("a lease with a damaged newest revision goes back to the previous one, and reuses no fence", async () => {
    await store.leases.acquire(request("t1"));
    const before = await store.leases.read("a");
    await store.leases.release("a", "t1");
    const second = await store.leases.acquire(request("t2"));
    if (!second.granted) throw new Error("not granted");
    expect(second.lease.fence).toBeGreaterThan(before?.fence ?? Number.POSITIVE_INFINITY);
    writeFileSync(newest(), "broken", { flag: "r+" });
    await expect(store.leases.check("a", "t2")).rejects.toMatchObject({ code: "FLEET_LEASE_LOST" });
    expect(store.takeWarnings()).toEqual([
      expect.stringMatching(/^The newest revision of the lease on "a" is damaged .*uses the previous revision\./),
    ]);
    const third = await store.leases.acquire(request("t3"));
    if (!third.granted) throw new Error("not granted");
    expect(third.lease.fence).toBeGreaterThan(second.lease.fence);
  });

  it("a lease that cannot be read is refused, and not treated as free, until its session is deleted", async () => {
    await mkdir(folder(), { recursive: true, mode: 0o700 });
    await openStore("file", root).sessions.create(sessionRecord("a"));
    const corrupt = { code: "FLEET_STATE_CORRUPT" };
    await expect(store.leases.read("a")).rejects.toMatchObject(corrupt);
    await expect(store.leases.acquire(request("t"))).rejects.toMatchObject(corrupt);
    await expect(store.leases.check("a", "t")).rejects.toMatchObject(corrupt);
    expect(await store.sessions.delete("a")).toBe(true);
    expect(await store.leases.acquire(request("t"))).toMatchObject({ granted: true });
  });
});

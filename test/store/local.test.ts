import { existsSync, mkdirSync, readdirSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeEach, describe, expect, it, onTestFinished, vi } from "vitest";
import { userDigest } from "../../src/base/ids.js";
import type { LeaseRequest } from "../../src/base/session.js";
import { ownHolder, SLOTS } from "../../src/store/limits.js";
import { openStore, type Store, type StoreOptions } from "../../src/store/store.js";
import { Table } from "../../src/store/table.js";
import { serverRecord, sessionRecord } from "../fixtures/store/store-records.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const DAY_MS = 24 * 3_600_000;

let root: string;
beforeEach(async () => {
  root = await temporaryRoot();
});

function open(options: StoreOptions = {}): Store {
  const store = openStore("file", root, options);
  onTestFinished(async () => await store.close());
  return store;
}

const request = (token: string, over: Partial<LeaseRequest> = {}): LeaseRequest => {
  return { sessionId: "a", holder: `holder of ${token}`, token, ttlMs: 600_000, placeMs: 600_000, ...over };
};

async function fenceOf(store: Store, token: string, over: Partial<LeaseRequest> = {}): Promise<number> {
  const answer = await store.leases.acquire(request(token, over));
  if (!answer.granted) throw new Error("not granted");
  return answer.lease.fence;
}

describe("the leases of a fleet on one host", () => {
  it.each([
    ["back", -365],
    ["ahead", 365],
  ])("a lease ends exactly after its TTL when the wall clock is set %s by a year", async (_, days) => {
    const clock = { now: () => ms, clockId: "boot 1" };
    let ms = 1_000;
    const store = open({ clock });
    await fenceOf(store, "t", { ttlMs: 300 });
    vi.useFakeTimers({ toFake: ["Date"], now: Date.now() + days * DAY_MS });
    onTestFinished(() => void vi.useRealTimers());
    ms = 1_299;
    expect(await open({ clock }).leases.check("a", "t")).toMatchObject({ remainingMs: 1 });
    ms = 1_300;
    expect(await open({ clock }).leases.read("a")).toBeNull();
  });

  it("a lease and the places in its queue end when the machine restarts, whatever its clock shows then", async () => {
    const before = await fenceOf(open({ clock: { now: () => 5 * DAY_MS, clockId: "boot 1" } }), "t");
    const after = open({ clock: { now: () => 1_000, clockId: "boot 2" } });
    expect(await after.leases.read("a")).toBeNull();
    expect(await fenceOf(after, "u")).toBeGreaterThan(before);
  });

  it("a lease that is renewed lasts, even if other requests for it have short times", async () => {
    let ms = 1_000;
    const store = open({ clock: { now: () => ms, clockId: "boot 1" } });
    await fenceOf(store, "t", { ttlMs: 10 * DAY_MS });
    await store.leases.acquire(request("waiter", { ttlMs: 10, placeMs: 10 }));
    ms += 9 * DAY_MS;
    expect(await store.leases.renew("a", "t", 10 * DAY_MS)).toMatchObject({ remainingMs: 10 * DAY_MS });
    ms += 9 * DAY_MS;
    expect(await store.leases.check("a", "t")).toMatchObject({ remainingMs: DAY_MS });
  });

  it("the fence of a deleted session is remembered for a day, even if the wall clock is set back", async () => {
    const store = open();
    await store.sessions.create(sessionRecord("a"));
    const first = await fenceOf(store, "t1");
    vi.useFakeTimers({ toFake: ["Date"], now: Date.now() - 365 * DAY_MS });
    onTestFinished(() => void vi.useRealTimers());
    await store.sessions.delete("a");
    await expect(store.leases.check("a", "t1")).rejects.toMatchObject({ code: "FLEET_LEASE_LOST" });
    expect(await fenceOf(store, "t2")).toBeGreaterThan(first);
  });

  it("no file of the state has the token of a holder or of a waiter", async () => {
    const store = open();
    await fenceOf(store, "secret of the holder", { holder: "alice" });
    await store.leases.acquire(request("secret of the waiter", { holder: "bob" }));
    const texts = readdirSync(root).map((name) => readFileSync(join(root, name), "latin1"));
    expect(texts.some((text) => text.includes("alice"))).toBe(true);
    expect(texts.filter((text) => text.includes("secret"))).toHaveLength(0);
  });
});

describe("the slots of a fleet on one host", () => {
  const turn = (id: string, most: number) => ({ user: "alice", kind: "turn", id, most, perMinute: null }) as const;
  /**
   * A holder whose process has ended. If another process had its PID now, that process would have another start time.
   */
  const DEAD = ownHolder().replace(/\.\d+\.[^.]+$/, ".4194303.1");

  it("the slots of a killed process become free as soon as another turn needs them", async () => {
    const store = open();
    expect(await store.limits.take(turn("own", 2))).toEqual({ granted: true });
    await new Table(store.rows, SLOTS).update(userDigest("alice"), ({ record }, now) => {
      record?.slots.push({ id: "dead", kind: "turn", holder: DEAD, endsAt: now + 60_000 });
    });
    expect(await store.limits.used("alice")).toMatchObject({ concurrentTurns: 1 });
    expect(await store.limits.take(turn("next", 2))).toEqual({ granted: true });
    expect(await store.limits.take(turn("last", 2))).toMatchObject({ granted: false, used: 2 });
  });

  it("isFirst ignores a period that began far ahead, because a clock was wrong", async () => {
    const { limits } = open();
    expect(await limits.isFirst("alice", "tokensPerDay", 400 * DAY_MS)).toBe(true);
    expect(await limits.isFirst("alice", "tokensPerDay", 10 * DAY_MS)).toBe(true);
    expect(await limits.isFirst("alice", "tokensPerDay", 10 * DAY_MS)).toBe(false);
    expect(await limits.isFirst("alice", "tokensPerDay", 9 * DAY_MS)).toBe(false);
  });
});

describe("the files of the state", () => {
  /** Damages the records, also those that are only in the file of commits so far. */
  function damage(): void {
    writeFileSync(join(root, "state.db"), Buffer.alloc(4_096, 7));
    truncateSync(join(root, "state.db-wal"));
  }

  it("a state folder of a version that kept its records in files is refused, and stays as it is", async () => {
    mkdirSync(join(root, "registry"), { recursive: true, mode: 0o700 });
    expect(() => openStore("file", root)).toThrow(
      expect.objectContaining({ code: "FLEET_PROTOCOL_UNSUPPORTED", suggestions: [expect.stringContaining("mv ")] }),
    );
    expect(readdirSync(root)).toEqual(["registry"]);
  });

  it("a registry with a newer schema is refused in every operation, and stays as it is", async () => {
    const store = open();
    await store.registry.update((draft) => void Object.assign(draft.servers, { s1: serverRecord("s1") }));
    const path = join(root, "registry.json");
    const newer = readFileSync(path, "utf8").replace(/"schema":\d+/, '"schema":99');
    writeFileSync(path, newer);
    const refusal = { code: "FLEET_PROTOCOL_UNSUPPORTED", message: expect.stringContaining("schema 99") };
    await expect(store.registry.read()).rejects.toMatchObject(refusal);
    await expect(store.registry.update(() => undefined)).rejects.toMatchObject(refusal);
    expect(readFileSync(path, "utf8")).toBe(newer);
  });

  it("a damaged registry is refused, and rebuild replaces it", async () => {
    const store = open();
    await store.registry.update(() => undefined);
    for (const text of ["", "{", "[]", '{"schema":2}', "null"]) {
      writeFileSync(join(root, "registry.json"), text);
      const refusal = { code: "FLEET_STATE_CORRUPT", message: expect.stringContaining("registry.json") };
      await expect(store.registry.read(), text).rejects.toMatchObject(refusal);
      await expect(
        store.registry.update(() => undefined),
        text,
      ).rejects.toMatchObject(refusal);
    }
    await store.registry.rebuild?.({ servers: { s1: serverRecord("s1") } });
    expect(Object.keys((await store.registry.read()).servers)).toEqual(["s1"]);
  });

  it("sessions that differ only in case are different sessions, even if the disk ignores case", async () => {
    const store = open();
    await store.sessions.create(sessionRecord("Notes"));
    expect(await store.sessions.read("notes")).toBeNull();
    await store.sessions.create(sessionRecord("notes", { owner: "bob" }));
    expect(await store.sessions.read("Notes")).toMatchObject({ owner: "alice" });
  });

  it("damaged records are reported, and repair restores them from the last copy and keeps the damaged file", async () => {
    const store = open();
    await store.sessions.create(sessionRecord("before"));
    expect(await store.damage()).toEqual([]);
    await store.copy();
    await store.sessions.create(sessionRecord("after"));
    damage();

    const other = open();
    await expect(other.sessions.list()).rejects.toMatchObject({ code: "FLEET_STATE_CORRUPT" });
    await expect(other.copy()).rejects.toMatchObject({ code: "FLEET_STATE_CORRUPT" });
    expect(await other.damage()).toMatchObject([{ file: "state.db" }]);
    const [repaired, ...others] = await other.repair();
    expect(others).toEqual([]);
    expect(repaired).toMatchObject({ file: "state.db", copiedAt: expect.any(Date) });
    expect(readFileSync(repaired?.keptAs ?? "")).toEqual(Buffer.alloc(4_096, 7));
    expect(await other.damage()).toEqual([]);
    expect((await other.sessions.list()).map(({ id }) => id)).toEqual(["before"]);
    // A process that had the damaged file open uses the restored one, too.
    expect((await store.sessions.list()).map(({ id }) => id)).toEqual(["before"]);
  });

  it("damaged records without a copy begin again", async () => {
    const store = open();
    await store.sessions.create(sessionRecord("a"));
    damage();
    expect(await store.repair()).toMatchObject([{ file: "state.db", copiedAt: null }]);
    expect(await store.sessions.list()).toEqual([]);
    await store.sessions.create(sessionRecord("b"));
  });

  it("forgetOlder leaves deleted text in no file, and deletes damaged files that contain it", async () => {
    const store = open();
    await store.sessions.create(sessionRecord("a", { purpose: "a very secret plan" }));
    await store.copy();
    await store.sessions.delete("a");
    writeFileSync(join(root, "corrupt-state.db-1"), "a very secret plan");
    writeFileSync(join(root, "corrupt-state.db-2"), "something else");
    await store.forgetOlder(["secret plan"]);
    const names = readdirSync(root).filter((name) => readFileSync(join(root, name), "latin1").includes("secret plan"));
    expect(names).toEqual([]);
    expect(existsSync(join(root, "corrupt-state.db-2"))).toBe(true);
  });
});

import { expect, it } from "vitest";
import { planRebalance } from "../../src/hosts/rebalance.js";
import type { HostRecord } from "../../src/model/host.js";
import type { UserPlacement } from "../../src/model/placement.js";
import { rendezvousChoice } from "../../src/pool/placement.js";
import { sessionRecord } from "../fixtures/store/store-records.js";

const USERS = Array.from({ length: 10_000 }, (_, index) => `user-${index}`);

function host(name: string, over: Partial<HostRecord> = {}): HostRecord {
  const startedAt = "2026-01-01T00:00:00.000Z";
  const entry = { door: "10.0.0.1:4300", state: "serving" as const, startedAt, storage: "/shared" };
  return { ...entry, name, instance: name, term: 1, gone: false, remainingMs: 1_000, ...over };
}

function placed(names: readonly string[]): UserPlacement[] {
  return USERS.map((user) => ({ user, placement: { host: rendezvousChoice(user, names), serverId: null } }));
}

const THREE = ["a", "b", "c"];

it("planRebalance moves at most 26 % of users to a new fourth host, and all hosts end up within 10 % of the mean", () => {
  const hosts = [...THREE, "d"].map((name) => host(name));
  const plan = planRebalance({ hosts, placements: placed(THREE), sessions: [], isShared: true });
  expect(plan.moves.length).toBeGreaterThan(0.2 * USERS.length);
  expect(plan.moves.length).toBeLessThanOrEqual(0.26 * USERS.length);
  expect(new Set(plan.moves.map(({ to }) => to))).toEqual(new Set(["d"]));
  expect(new Set(plan.moves.map(({ from }) => from))).toEqual(new Set(THREE));
  for (const { planned } of plan.hosts) {
    expect(planned).toBeGreaterThan(0.9 * 2_500);
    expect(planned).toBeLessThan(1.1 * 2_500);
  }
  expect(plan.hosts.reduce((sum, { planned }) => sum + planned, 0)).toBe(USERS.length);
});

it.each([
  ["gone", { gone: true }],
  ["draining", { state: "draining" as const }],
  ["without a front door", { door: null }],
])("planRebalance plans to move all users of a host that is %s, and no others", (_, over) => {
  const hosts = [host("a"), host("b"), host("c", over)];
  const placements = placed(THREE);
  const plan = planRebalance({ hosts, placements, sessions: [], isShared: true });
  const there = placements.filter(({ placement }) => placement.host === "c").length;
  expect(plan.moves).toHaveLength(there);
  expect(plan.moves.every(({ from }) => from === "c")).toBe(true);
  expect(plan.hosts.find(({ name }) => name === "c")).toEqual({
    name: "c",
    users: there,
    planned: 0,
    takesUsers: false,
  });
});

it("planRebalance plans no move when all users are where they belong, or when no host takes users", () => {
  const all = THREE.map((name) => host(name));
  const none = THREE.map((name) => host(name, { gone: true }));
  for (const hosts of [all, none]) {
    expect(planRebalance({ hosts, placements: placed(THREE), sessions: [], isShared: true }).moves).toEqual([]);
  }
});

it("with shared storage, planRebalance also moves sessions that a moved user left behind on a live host", () => {
  const to = rendezvousChoice("alice", ["a", "b"]);
  const from = to === "a" ? "b" : "a";
  const sessions = [
    sessionRecord("left", { owner: "alice", host: from }),
    sessionRecord("let-go", { owner: "alice", host: from, released: true }),
    sessionRecord("there", { owner: "alice", host: to }),
    sessionRecord("of-gone", { owner: "alice", host: "c" }),
  ];
  const hosts = [host("a"), host("b"), host("c", { gone: true })];
  const input = { hosts, placements: [{ user: "alice", placement: { host: to, serverId: null } }], sessions };
  const { moves, hosts: loads } = planRebalance({ ...input, isShared: true });
  expect(moves).toEqual([{ user: "alice", from, to, sessions: 1 }]);
  expect(loads.map(({ users, planned }) => users - planned)).toEqual([0, 0, 0]);
  expect(planRebalance({ ...input, isShared: false }).moves).toEqual([]);
});

it("planRebalance keeps a user on the host whose own disk has their sessions, unless that host is gone", () => {
  const placements = [
    { user: "alice", placement: { host: "old", serverId: null } },
    { user: "bob", placement: { host: "old", serverId: null } },
  ];
  const sessions = [
    sessionRecord("s1", { owner: "alice", host: "old" }),
    sessionRecord("s2", { owner: "bob", host: "a" }),
  ];
  const old = host("old", { state: "draining" });
  const input = { hosts: [host("a"), old], placements, sessions };
  expect(planRebalance({ ...input, isShared: false })).toMatchObject({
    moves: [{ user: "bob", from: "old", to: "a", sessions: 0 }],
    stays: [{ user: "alice", host: "old", reason: "the disk of old has 1 session of this user" }],
  });
  const gone = [host("a"), host("old", { gone: true })];
  expect(planRebalance({ ...input, hosts: gone, isShared: false })).toMatchObject({ moves: [{}, {}], stays: [] });
  expect(planRebalance({ ...input, isShared: true })).toMatchObject({
    moves: [
      { user: "alice", sessions: 1 },
      { user: "bob", sessions: 0 },
    ],
    stays: [],
  });
});

/**
 * Shows how 10,000 users are placed on hosts: how even the loads are, and how many users move when a host is added or
 * removed. The results are counts and not times, so one run is enough.
 *
 * Run: node --import tsx bench/placement.ts [users]
 */
import { planRebalance } from "../src/hosts/rebalance.js";
import type { HostRecord } from "../src/model/host.js";
import { rendezvousChoice } from "../src/pool/placement.js";

const count = Number(process.argv[2] ?? 10_000);
const users = Array.from({ length: count }, (_, index) => `user-${index}@example.com`);

function hosts(names: readonly string[]): HostRecord[] {
  return names.map((name) => ({
    name,
    instance: name,
    term: 1,
    gone: false,
    remainingMs: 15_000,
    door: "127.0.0.1:4300",
    state: "serving",
    startedAt: "2026-01-01T00:00:00.000Z",
    storage: "/shared",
  }));
}

function show(title: string, before: readonly string[], after: readonly string[]): void {
  const placements = users.map((user) => ({
    user,
    placement: { host: rendezvousChoice(user, before), serverId: null },
  }));
  const plan = planRebalance({ hosts: hosts(after), placements, sessions: [], isShared: true });
  const even = count / after.length;
  const loads = plan.hosts.filter(({ takesUsers }) => takesUsers).map(({ planned }) => planned / even - 1);
  const furthest = Math.max(...loads.map(Math.abs));
  const moved = (plan.moves.length / count) * 100;
  const least =
    (1 - before.filter((name) => after.includes(name)).length / Math.max(before.length, after.length)) * 100;
  console.log(
    `${title}: ${moved.toFixed(1)} % of ${count} users move (least possible: ${least.toFixed(1)} %), ` +
      `load within ${(furthest * 100).toFixed(1)} % of even`,
  );
}

const three = ["host-0", "host-1", "host-2"];
const four = [...three, "host-3"];
show("3 to 4 hosts", three, four);
show("4 to 3 hosts", four, three);
show(
  "10 to 11 hosts",
  Array.from({ length: 10 }, (_, i) => `host-${i}`),
  Array.from({ length: 11 }, (_, i) => `host-${i}`),
);

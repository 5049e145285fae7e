import { expect, it } from "vitest";
import type { HostEntry, HostRecord } from "../../src/base/host.js";
import type { ServeContext } from "../../src/serve/context.js";
import type { Terms } from "../../src/serve/heartbeat.js";
import { Heartbeat } from "../../src/serve/heartbeat.js";
import type { HostTable } from "../../src/store/hosts.js";
import { eventually } from "../fixtures/eventually.js";
import { TestClock } from "../fixtures/fleets/test-clock.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

const TTL_MS = 15_000;

/** Registers the host h1 in a fake directory of hosts. The test controls the directory's answers and the time. */
async function enter() {
  const clock = new TestClock();
  const said: string[] = [];
  const directory = { term: 7, isDown: false, beats: 0 };
  const hosts = {
    own: "h1",
    beat: async (instance: string, entry: HostEntry, ttlMs: number): Promise<HostRecord> => {
      directory.beats++;
      if (directory.isDown) throw new Error("no answer");
      return { ...entry, name: "h1", instance, term: directory.term, gone: false, remainingMs: ttlMs };
    },
    leave: async () => undefined,
    forget: async () => true,
    list: async () => [],
    registryOf: async () => ({ servers: {} }),
  };
  const terms = { over: () => void said.push("over"), begun: async () => void said.push("begun") };
  const context = {
    clock,
    config: {
      host: { ttlMs: TTL_MS, advertise: null },
      serve: { tls: { cert: null } },
      storage: { shared: null },
    },
    stateRoot: await temporaryRoot(),
    log: (_level: string, message: string) => void said.push(message),
    metrics: { failed: () => undefined },
  } as unknown as ServeContext;
  const heartbeat = await Heartbeat.enter(context, hosts as unknown as HostTable, terms as unknown as Terms);
  /** Moves the time on in steps, so that each heartbeat gets its answer in time. */
  const pass = async (ms: number) => {
    for (let passed = 0; passed < ms; passed += TTL_MS / 15) {
      await clock.advance(TTL_MS / 15);
      await new Promise((resolve) => setImmediate(resolve));
    }
  };
  return { clock, directory, heartbeat, said, pass };
}

it("a host keeps its term while its heartbeats are answered, and sends three heartbeats in each TTL", async () => {
  const { directory, heartbeat, said, pass } = await enter();
  const before = directory.beats;
  await pass(4 * TTL_MS);
  expect(directory.beats - before).toBe(12);
  expect(heartbeat.term).toBe(7);
  expect(said).toEqual([]);
  await heartbeat.leave({ gone: true });
});

it("a host ends its term one TTL after it sent the last heartbeat that was answered, and not earlier", async () => {
  const { clock, directory, heartbeat, said, pass } = await enter();
  await pass(TTL_MS / 3);
  directory.isDown = true;
  await pass(TTL_MS - 1_000);
  await clock.advance(999);
  expect(heartbeat.term).toBe(7);
  await clock.advance(1);
  expect(heartbeat.term).toBe(0);
  expect(said.filter((one) => one === "over")).toHaveLength(1);
  await heartbeat.leave({ gone: false });
});

it("a host begins a new term when a heartbeat is answered after the other hosts considered the host gone", async () => {
  const { clock, directory, heartbeat, said } = await enter();
  // The clock of a suspended process goes on, but its timers do not run.
  clock.jump(2 * TTL_MS);
  directory.term = 8;
  clock.runDue();
  await eventually("the next term", () => heartbeat.term === 8);
  expect(said.filter((one) => one === "over" || one === "begun")).toEqual(["over", "begun"]);
  await heartbeat.leave({ gone: true });
});

it("a host sends no heartbeat after it has left", async () => {
  const { directory, heartbeat, said, pass } = await enter();
  await heartbeat.leave({ gone: true });
  const before = directory.beats;
  await pass(2 * TTL_MS);
  expect(directory.beats).toBe(before);
  expect(said).toEqual([]);
});

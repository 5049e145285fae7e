import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { expect, it } from "vitest";
import type { ProcessIdentity, Registry, ServerRecord } from "../../src/base/server.js";
import { loadConfig } from "../../src/config/load/load.js";
import { identify, ownIdentity } from "../../src/runtime/process/process-table.js";
import { claimStart, claimStop, giveUpStop, recordEnd, recordReady } from "../../src/servers/claims.js";
import { recordCrashLoop, recordHealth } from "../../src/servers/health.js";
import { repairRecords } from "../../src/servers/repair.js";
import { HeldClaim, isBroken, isHeld, isRunning } from "../../src/servers/server.js";
import type { PoolContext } from "../../src/servers/surroundings.js";
import type { Store } from "../../src/store/ports.js";
import { noEvents } from "../fixtures/no-events.js";
import { sleeper } from "../fixtures/processes.js";
import { serverRecord } from "../fixtures/store/store-records.js";

/**
 * Runs random histories of a few servers. Commands begin to start or stop a server, and then finish, give up or die.
 * Server processes die. Repairs fix the records that they find. No command is a real process: to make a command die,
 * the test disposes of its claim, or makes the claim name a process that does not exist.
 */

const IDS = ["s1", "s2", "s3"] as const;
const RANGE = { from: 5000, to: 5002 };

type Step =
  | { kind: "start" | "stop"; id: (typeof IDS)[number]; stays: boolean; end: "done" | "given up" | "dead" | "stuck" }
  | { kind: "server dies" | "hangs" | "recovers" | "crash loop"; id: (typeof IDS)[number] }
  | { kind: "repair" };

const id = fc.constantFrom(...IDS);
const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({
    kind: fc.constantFrom("start" as const, "stop" as const),
    id,
    stays: fc.boolean(),
    end: fc.constantFrom("done" as const, "given up" as const, "dead" as const, "stuck" as const),
  }),
  fc.record({ kind: fc.constantFrom("server dies", "hangs", "recovers", "crash loop"), id }),
  fc.constant({ kind: "repair" as const }),
);

/** One random history, on a store in memory. The store needs no lock, because only one step runs at a time. */
class Histories {
  registry: Registry = { servers: {} };
  readonly held: HeldClaim[] = [];
  readonly context: PoolContext;
  readonly #running: ProcessIdentity;
  #launches = 0;

  constructor(running: ProcessIdentity) {
    this.#running = running;
    const stateRoot = join(tmpdir(), "copilotfleet-no-such-folder");
    const store = {
      registry: {
        read: async () => structuredClone(this.registry),
        update: async <T>(change: (draft: Registry) => T) => {
          const draft = structuredClone(this.registry);
          const result = change(draft);
          this.registry = draft;
          return structuredClone(result);
        },
      },
    } as unknown as Store;
    const { config } = loadConfig({ env: { COPILOTFLEET_HOME: stateRoot }, cwd: "/" });
    this.context = {
      store,
      config,
      stateRoot,
      env: {},
      events: noEvents,
    };
  }

  async run(each: Step): Promise<void> {
    if (each.kind === "repair") {
      await repairRecords(this.context, AbortSignal.timeout(60_000));
      return;
    }
    const { store } = this.context;
    const server = this.registry.servers[each.id];
    switch (each.kind) {
      case "start":
        return this.#start(each);
      case "stop":
        return this.#stop(each);
      case "server dies":
        if (server?.process) server.process = { ...server.process, startTicks: "1" };
        return;
      case "hangs":
        if (server !== undefined) await recordHealth(store, server, "it does not answer");
        return;
      case "recovers":
        if (server !== undefined) await recordHealth(store, server, null);
        return;
      case "crash loop":
        if (server !== undefined) await recordCrashLoop(store, server, 5);
    }
  }

  #start({ id, end }: Extract<Step, { end: string }>): void {
    const held = this.#claim(end);
    const before = this.registry.servers[id];
    const wasHeld = isHeld(before?.claim ?? null);
    const decision = claimStart(this.registry, id, {
      launchId: `launch-${this.#launches++}`,
      range: RANGE,
      now: "2026-01-01T00:00:00.000Z",
      fresh: { ...serverRecord(id), port: null, lastPort: null, process: null, home: `/none/${id}/home` },
      settings: {},
      supervised: false,
      claim: held.claim,
    });
    if (wasHeld) expect(decision.kind, "a start of what somebody is at").toBe("busy");
    if (decision.kind !== "start" && decision.kind !== "adopt") {
      held[Symbol.dispose]();
      return;
    }
    if (end === "done") recordReady(decision.server, { process: this.#running, version: "1" });
    if (end === "given up") recordEnd(decision.server, "failed", "it did not start");
    this.#leave(held, end);
  }

  #stop({ id, stays, end }: Extract<Step, { end: string }>): void {
    const held = this.#claim(end);
    const wasHeld = isHeld(this.registry.servers[id]?.claim ?? null);
    const decision = claimStop(this.registry, id, { stays, claim: held.claim });
    if (wasHeld) expect(decision.kind, "a stop of what somebody is at").toBe("busy");
    if (decision.kind !== "stop") {
      held[Symbol.dispose]();
      return;
    }
    if (end === "done") recordEnd(decision.server, "stopped", null);
    if (end === "given up") giveUpStop(decision.server, decision.from);
    this.#leave(held, end);
  }

  #claim(end: string): HeldClaim {
    const held = new HeldClaim();
    if (end === "dead") held.claim.startTicks = "1";
    return held;
  }

  /** Ends the command's claim. A command that is `stuck` keeps its claim until all steps are done. */
  #leave(held: HeldClaim, end: string): void {
    if (end === "stuck") this.held.push(held);
    else held[Symbol.dispose]();
  }

  get servers(): ServerRecord[] {
    return Object.values(this.registry.servers);
  }
}

function expectSound({ servers }: Histories): void {
  const ports = servers.flatMap(({ port }) => port ?? []);
  expect(new Set(ports).size, "each port is one server's").toBe(ports.length);
  for (const server of servers) {
    if (server.state === "stopped") expect(server).toMatchObject({ process: null, failure: null });
    if (server.state === "failed" && server.process === null) expect(server.failure).not.toBe("");
    if (server.state === "ready") expect(server.process).not.toBeNull();
  }
}

it("a cancelled stop does not record a server as ready if the commands of an earlier start and stop died", async () => {
  const histories = new Histories(ownIdentity());
  const dead = { id: "s1", stays: false, end: "dead" } as const;
  await histories.run({ kind: "start", ...dead });
  await histories.run({ kind: "stop", ...dead });
  await histories.run({ kind: "stop", ...dead, end: "given up" });
  expectSound(histories);
});

it("after any commands and crashes, one repair mends every record and ends no running process", async () => {
  const pid = sleeper();
  const running = identify(pid);
  if (running === null) throw new Error("sleep has ended");
  await fc.assert(
    fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps) => {
      const histories = new Histories(running);
      for (const each of steps) {
        await histories.run(each);
        expectSound(histories);
      }
      const alive = histories.servers.filter(isRunning).map(({ id }) => id);
      // Now the stuck commands die, too. One repair has to fix all records.
      for (const held of histories.held) held[Symbol.dispose]();
      await histories.run({ kind: "repair" });
      expectSound(histories);
      for (const server of histories.servers) {
        expect(isBroken(server), JSON.stringify(server)).toBe(false);
        expect(isHeld(server.claim)).toBe(false);
        expect(["ready", "unhealthy", "stopped", "failed"]).toContain(server.state);
        if (server.state === "stopped" || server.state === "failed") expect(server.port).toBeNull();
        expect(isRunning(server), server.id).toBe(alive.includes(server.id));
      }
      expect(identify(pid)).toEqual(running);
      // After the repair, each server can be started and stopped again.
      for (const server of IDS) {
        await histories.run({ kind: "start", id: server, stays: false, end: "done" });
        expect(histories.registry.servers[server]).toMatchObject({ state: expect.stringMatching(/ready|unhealthy/) });
        await histories.run({ kind: "stop", id: server, stays: false, end: "done" });
        expect(histories.registry.servers[server]).toMatchObject({ state: "stopped", port: null });
      }
    }),
    { numRuns: 60 },
  );
});

it("a claim of this process stays in force until the operation that made the claim is over", () => {
  const held = new HeldClaim();
  expect(isHeld(held.claim)).toBe(true);
  // The registry returns copies of claims, so a copy counts as held, too.
  expect(isHeld(structuredClone(held.claim))).toBe(true);
  // Earlier versions wrote claims without `move`.
  expect(isHeld(ownIdentity())).toBe(true);
  // We know nothing about other threads of this process, so their claims count as held.
  expect(isHeld({ ...held.claim, move: "7:of-another-thread" })).toBe(true);
  held[Symbol.dispose]();
  expect(isHeld(held.claim)).toBe(false);
  expect(isHeld({ ...ownIdentity(), startTicks: "1" })).toBe(false);
  expect(isHeld(null)).toBe(false);
});

import { describe, expect, it } from "vitest";
import type { ProcessIdentity, Registry, ServerRecord } from "../../src/base/server.js";
import { ownIdentity } from "../../src/runtime/process/process-table.js";
import { claimStart, claimStop, giveUpStop, ownClaim, recordEnd } from "../../src/servers/claims.js";
import { isBroken } from "../../src/servers/server.js";
import { serverRecord } from "../fixtures/store/store-records.js";

/** This process is the live process of these tests. The same identity with another start time is a dead process. */
const alive = ownIdentity();
const dead: ProcessIdentity = { ...alive, startTicks: "1" };

function registryOf(change: Partial<ServerRecord>): { registry: Registry; server: ServerRecord } {
  const server: ServerRecord = { ...serverRecord("s"), port: 5000, launchId: "old", claim: null, ...change };
  return { registry: { servers: { s: server } }, server };
}

const intent = {
  launchId: "new",
  range: { from: 5000, to: 5009 },
  now: "2026-01-01T00:00:00.000Z",
  fresh: { ...serverRecord("s"), port: null, lastPort: null },
  supervised: false,
  claim: alive,
  settings: {},
};

describe("claimStart", () => {
  it.each<[string, string, Partial<ServerRecord>]>([
    ["runs", "running", { state: "ready", process: alive }],
    ["runs but does not answer", "running", { state: "unhealthy", process: alive }],
    ["is stopped", "start", { state: "stopped", process: null }],
    ["failed", "start", { state: "failed", process: null }],
    ["died", "start", { state: "ready", process: dead }],
    ["is being started", "busy", { state: "starting", process: null, claim: alive }],
    ["is being stopped", "busy", { state: "draining", process: alive, claim: alive }],
    ["was being started by a command that died", "adopt", { state: "starting", process: null, claim: dead }],
    [
      "was being stopped by a command that died, but still runs",
      "running",
      { state: "draining", process: alive, claim: dead },
    ],
    [
      "was being stopped by a command that died, and no longer runs",
      "start",
      { state: "draining", process: dead, claim: dead },
    ],
  ])("claimStart for a server that %s returns the decision %s", (_, kind, change) => {
    const { registry, server } = registryOf(change);
    const decision = claimStart(registry, "s", intent);
    expect(decision.kind).toBe(kind);
    if (kind === "start") {
      expect(registry.servers.s).toMatchObject({ state: "starting", launchId: "new", claim: alive, process: null });
      expect(decision).toMatchObject({ leftover: { launchId: "old" } });
    }
    if (kind === "running") {
      expect(server.state).not.toBe("draining");
      expect(isBroken(server)).toBe(false);
    }
  });

  it("claimStart reserves a port that no other server holds", () => {
    const registry: Registry = { servers: { other: { ...serverRecord("other"), port: 5000 } } };
    expect(claimStart(registry, "s", intent)).toMatchObject({ kind: "start", server: { port: 5001 } });
  });

  it("claimStart chooses another port in its second try if another writer has recorded the same port first", () => {
    expect(claimStart({ servers: {} }, "s", intent)).toMatchObject({ kind: "start", server: { port: 5000 } });
    // The store runs the same change again, on the registry that the other writer has committed.
    const other = { ...serverRecord("other"), port: 5000 };
    expect(claimStart({ servers: { other } }, "s", intent)).toMatchObject({ kind: "start", server: { port: 5001 } });
    const full = { range: { from: 5000, to: 5000 } };
    const again = () => claimStart({ servers: { other } }, "s", { ...intent, ...full });
    expect(again).toThrow(expect.objectContaining({ code: "FLEET_PORTS_EXHAUSTED" }));
  });
});

describe("claimStop", () => {
  it.each<[string, string, Partial<ServerRecord>]>([
    ["runs", "stop", { state: "ready", process: alive }],
    ["died", "stop", { state: "ready", process: dead }],
    ["is stopped", "stopped", { state: "stopped", process: null }],
    ["failed", "stopped", { state: "failed", process: null }],
    ["is being started", "busy", { state: "starting", process: null, claim: alive }],
    ["was being stopped by a command that died", "stop", { state: "draining", process: alive, claim: dead }],
  ])("claimStop for a server that %s returns the decision %s", (_, kind, change) => {
    const { registry } = registryOf(change);
    expect(claimStop(registry, "s", { stays: false, claim: alive }).kind).toBe(kind);
  });

  it("claimStop returns the decision absent for a server that is not recorded", () => {
    expect(claimStop({ servers: {} }, "s", { stays: false, claim: alive })).toEqual({ kind: "absent" });
  });
});

describe("a claim", () => {
  it("giveUpStop records the server as running again", () => {
    for (const from of ["ready", "unhealthy", "draining"] as const) {
      const { server } = registryOf({ state: "draining", process: alive, claim: alive });
      giveUpStop(server, from);
      expect(server).toMatchObject({ state: from === "draining" ? "ready" : from, claim: null });
      expect(isBroken(server)).toBe(false);
    }
  });

  it("ownClaim throws FLEET_SERVER_CONFLICT when this process does not hold the claim on the launch", () => {
    for (const change of [{ claim: dead }, { claim: null }, { claim: alive, launchId: "another" }]) {
      const { registry } = registryOf(change);
      expect(() => ownClaim(registry, "s", "old")).toThrow(expect.objectContaining({ code: "FLEET_SERVER_CONFLICT" }));
    }
    const { registry, server } = registryOf({ claim: alive });
    expect(ownClaim(registry, "s", "old")).toBe(server);
  });

  it("recordEnd marks a server as failed, ends its claim and frees its port", () => {
    const { server } = registryOf({ state: "draining", process: alive, claim: alive });
    recordEnd(server, "failed", "why");
    expect(server).toMatchObject({
      state: "failed",
      failure: "why",
      port: null,
      process: null,
      launchId: null,
      startedAt: null,
      claim: null,
    });
  });
});

import { describe, expect, it } from "vitest";
import type { ProcessIdentity } from "../../src/model/process.js";
import type { Registry } from "../../src/model/registry.js";
import type { ServerRecord } from "../../src/model/server.js";
import { claimStart, claimStop, giveUpStop, ownClaim, settle } from "../../src/pool/claims/transitions.js";
import { isBroken } from "../../src/pool/server.js";
import { ownIdentity } from "../../src/runtime/process/process-table.js";
import { serverRecord } from "../fixtures/store/store-records.js";

/** This process stands for a live one. The same identity with another start time stands for a dead one. */
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
  it.each<[string, Partial<ServerRecord>, string]>([
    ["runs", { state: "ready", process: alive }, "running"],
    ["runs but does not answer", { state: "unhealthy", process: alive }, "running"],
    ["is stopped", { state: "stopped", process: null }, "start"],
    ["failed", { state: "failed", process: null }, "start"],
    ["died", { state: "ready", process: dead }, "start"],
    ["is being started", { state: "starting", process: null, claim: alive }, "busy"],
    ["is being stopped", { state: "draining", process: alive, claim: alive }, "busy"],
    ["was being started by a command that died", { state: "starting", process: null, claim: dead }, "adopt"],
    [
      "was being stopped by a command that died, but still runs",
      { state: "draining", process: alive, claim: dead },
      "running",
    ],
    [
      "was being stopped by a command that died, and no longer runs",
      { state: "draining", process: dead, claim: dead },
      "start",
    ],
  ])("claimStart decides about a server that %s (case %#)", (_, change, kind) => {
    const { registry, server } = registryOf(change);
    const decision = claimStart(registry, "s", intent);
    expect(decision.kind).toBe(kind);
    if (kind === "start") {
      expect(registry.servers.s).toMatchObject({ state: "starting", launchId: "new", claim: alive, process: null });
      expect(decision).toMatchObject({ leftover: "old" });
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
});

describe("claimStop", () => {
  it.each<[string, Partial<ServerRecord>, string]>([
    ["runs", { state: "ready", process: alive }, "stop"],
    ["died", { state: "ready", process: dead }, "stop"],
    ["is stopped", { state: "stopped", process: null }, "stopped"],
    ["failed", { state: "failed", process: null }, "stopped"],
    ["is being started", { state: "starting", process: null, claim: alive }, "busy"],
    ["was being stopped by a command that died", { state: "draining", process: alive, claim: dead }, "stop"],
  ])("claimStop decides about a server that %s", (_, change, kind) => {
    const { registry } = registryOf(change);
    expect(claimStop(registry, "s", { stays: false, claim: alive }).kind).toBe(kind);
  });

  it("claimStop does nothing about a server that is not recorded", () => {
    expect(claimStop({ servers: {} }, "s", { stays: false, claim: alive })).toEqual({ kind: "absent" });
  });
});

describe("a claim", () => {
  it("a stop that was given up leaves its server running", () => {
    for (const from of ["ready", "unhealthy", "draining"] as const) {
      const { server } = registryOf({ state: "draining", process: alive, claim: alive });
      giveUpStop(server, from);
      expect(server).toMatchObject({ state: from === "draining" ? "ready" : from, claim: null });
      expect(isBroken(server)).toBe(false);
    }
  });

  it("a claim that another process took over causes a conflict", () => {
    for (const change of [{ claim: dead }, { claim: null }, { claim: alive, launchId: "another" }]) {
      const { registry } = registryOf(change);
      expect(() => ownClaim(registry, "s", "old")).toThrow(expect.objectContaining({ code: "FLEET_SERVER_CONFLICT" }));
    }
    const { registry, server } = registryOf({ claim: alive });
    expect(ownClaim(registry, "s", "old")).toBe(server);
  });

  it("settling a claim frees the port of the server", () => {
    const { server } = registryOf({ state: "draining", process: alive, claim: alive });
    settle(server, "failed", "why");
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

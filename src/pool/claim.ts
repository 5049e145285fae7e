import { FleetError } from "../errors.js";
import { isAlive, ownIdentity } from "../runtime/process-table.js";
import type { Claim, ProcessIdentity, Registry, ServerRecord, ServerState } from "../store/store.js";
import { closedBy } from "./admission.js";
import { isHeld } from "./held-claim.js";
import { choosePort, type PortRange } from "./ports.js";
import { isRunning } from "./server.js";

/**
 * Moving a server from one state to the next takes a claim on its record, so that two commands never do it at once.
 * A claim is this process's identity: it ends with the transition, or with the process (`HeldClaim`). All functions here run inside a
 * registry update: they look and decide, and do nothing else.
 */

export type StartDecision =
  /** The pool admits nothing new; `by` says who closed it. */
  | { kind: "closed"; by: string }
  /** It runs already. */
  | { kind: "running"; server: ServerRecord }
  /** Somebody else is at it: ask again in a moment. */
  | { kind: "busy"; server: ServerRecord }
  /** Ours to start. Whatever still carries `leftover` is of an earlier life, and has to go first. */
  | { kind: "start"; server: ServerRecord; leftover: string | null }
  /** Somebody died while starting it: the process may be there. Ours to adopt or to clear away. */
  | { kind: "adopt"; server: ServerRecord };

export interface StartIntent {
  launchId: string;
  range: PortRange;
  now: string;
  /** The record as it should be when there is none yet. */
  create: () => ServerRecord;
  /** What a caller wants changed on a server that is started anew. */
  amend: (server: ServerRecord) => void;
  /** Started by `serve` since it should run: how often it ended before still counts. */
  supervised: boolean;
  claim: Claim;
}

/** Records the intent to start a server: state `starting`, a reserved port, a launch id, our claim. */
export function claimStart(registry: Registry, id: string, intent: StartIntent): StartDecision {
  const by = closedBy(registry);
  if (by !== null) return { kind: "closed", by };
  const found = registry.servers[id];
  if (found !== undefined && isHeld(found.claim)) return { kind: "busy", server: found };
  if (found !== undefined && found.state !== "starting" && isRunning(found)) {
    if (found.state === "draining") giveUpStop(found, "ready");
    return { kind: "running", server: found };
  }
  if (found?.state === "starting") {
    found.claim = intent.claim;
    return { kind: "adopt", server: found };
  }
  const server = found ?? intent.create();
  const leftover = server.launchId;
  intent.amend(server);
  server.port ??= choosePort(registry, intent.range, new Set(), server.lastPort);
  server.lastPort = server.port;
  server.state = "starting";
  server.startedAt = intent.now;
  server.launchId = intent.launchId;
  server.process = null;
  server.failure = null;
  if (!intent.supervised) delete server.crashes;
  server.claim = intent.claim;
  registry.servers[id] = server;
  return { kind: "start", server, leftover };
}

export type StopDecision =
  | { kind: "absent" }
  | { kind: "stopped"; server: ServerRecord }
  | { kind: "busy"; server: ServerRecord }
  /** Ours to stop; `from` is the state that it was in. */
  | { kind: "stop"; server: ServerRecord; from: ServerState };

/**
 * Records the intent to stop a server. The port stays reserved until the process is gone. With `stays` it should run
 * nevertheless, and is to be started again.
 */
export function claimStop(
  registry: Registry,
  id: string,
  { stays, claim }: { stays: boolean; claim: Claim },
): StopDecision {
  const server = registry.servers[id];
  if (server === undefined) return { kind: "absent" };
  if (isHeld(server.claim) || isHeld(server.replacement?.claim ?? null)) return { kind: "busy", server };
  if (server.state === "stopped" || (server.state === "failed" && server.process === null)) {
    if (!stays) server.desired = "stopped";
    if (server.state === "stopped") return { kind: "stopped", server };
    // Dead and cleared away already: stopping it is only saying so.
    server.state = "stopped";
    server.failure = null;
    return { kind: "stopped", server };
  }
  const from = server.state;
  server.state = "draining";
  server.claim = claim;
  return { kind: "stop", server, from };
}

/**
 * A stop that came to nothing, by a signal or since its command died while it waited: the server serves on. Finishing it
 * in somebody else's name would cut the very turns that it waited for.
 */
export function giveUpStop(server: ServerRecord, from: ServerState): void {
  // A start whose command died before a stop whose command died: it was never ready, and is adopted or cleared as one.
  const before = server.process === null ? "starting" : "ready";
  server.state = from === "draining" ? before : from;
  server.claim = null;
}

/**
 * The record, if the launch it was claimed for is still ours. It is not when this process was suspended for so long
 * that somebody else took over.
 *
 * @throws FleetError `FLEET_SERVER_CONFLICT`.
 */
export function ownClaim(registry: Registry, id: string, launchId: string | null): ServerRecord {
  const server = registry.servers[id];
  if (server === undefined || server.launchId !== launchId || !isSelf(server.claim)) {
    throw serverTaken(id);
  }
  return server;
}

export function serverTaken(id: string): FleetError {
  return new FleetError("FLEET_SERVER_CONFLICT", `Server ${id} was taken over by another command meanwhile.`, {
    suggestions: ["copilotfleet ps"],
  });
}

/** For messages: who moves the server at the moment. */
export function holderOf({ claim }: ServerRecord): string {
  return claim === null ? "another command" : `process ${claim.pid}`;
}

function isSelf(claim: ProcessIdentity | null): boolean {
  const self = ownIdentity();
  return claim !== null && claim.pid === self.pid && claim.startTicks === self.startTicks && isAlive(claim);
}

/** Ends a start: it runs, and should. */
export function settleReady(server: ServerRecord, running: { process: ProcessIdentity; version: string }): void {
  server.state = "ready";
  server.process = running.process;
  server.version = running.version;
  server.failure = null;
  server.desired = "running";
  server.claim = null;
}

/** One more end that nobody asked for; those before a healthy time do not count any more. */
export function countCrash(server: ServerRecord, nowMs: number, stableMs: number): void {
  const healthyMs = server.process === null ? 0 : nowMs - Date.parse(server.startedAt ?? "");
  server.crashes = (healthyMs >= stableMs ? 0 : (server.crashes ?? 0)) + 1;
}

/** Ends a transition with nothing running: the port is free again, the claim is gone. */
export function settle(server: ServerRecord, state: "stopped" | "failed", failure: string | null): void {
  server.state = state;
  server.failure = failure;
  server.port = null;
  server.process = null;
  server.launchId = null;
  server.startedAt = null;
  server.claim = null;
  server.replacement = null;
}

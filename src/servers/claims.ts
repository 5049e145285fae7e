import { FleetError } from "../base/errors.js";
import type { SandboxReport } from "../base/sandbox.js";
import type { Claim, ProcessIdentity, Registry, ServerRecord, ServerState } from "../base/server.js";
import type { Config } from "../config/schema.js";
import { logSize, sendsWithoutDelay } from "../runtime/files/server-log.js";
import { isAlive, ownIdentity } from "../runtime/process/process-table.js";
import type { Store } from "../store/store.js";
import { closedBy } from "./admission.js";
import { isHeld, isRunning } from "./server.js";
import { choosePort } from "./surroundings.js";

/*
 * A command takes a claim on a server's record before it moves the server to another state, so that two commands never
 * do this at the same time. The claim ends with that transition or with the process (`HeldClaim`). The synchronous
 * functions here run inside a registry update, so they only read and change the record.
 */

export type StartDecision =
  /** The pool is closed; `by` names the command that closed it. */
  | { kind: "closed"; by: string }
  | { kind: "running"; server: ServerRecord }
  /** Another command holds the claim: try again in a moment. */
  | { kind: "busy"; server: ServerRecord }
  /**
   * The caller starts the server. Before that, it ends all processes that are left of the earlier launch `leftover`.
   */
  | { kind: "start"; server: ServerRecord; leftover: Leftover }
  /**
   * The command that was starting the server died. The caller adopts the server's process, or ends what is left of it.
   */
  | { kind: "adopt"; server: ServerRecord };

/** The remains of an earlier launch, and whether a stop of that launch was interrupted. */
export interface Leftover extends Pick<ServerRecord, "launchId" | "process"> {
  sandbox: SandboxReport | undefined;
  stopping: boolean;
}

interface StartIntent {
  launchId: string;
  range: Config["ports"];
  now: string;
  /** The record to begin with if the server has no record. */
  fresh: ServerRecord;
  /** The fields that the caller changes in the record of a server that is about to start. */
  settings: Partial<Pick<ServerRecord, "token" | "runtimePath" | "sandbox" | "cwd">>;
  supervised: boolean;
  claim: Claim;
}

/**
 * Decides what a caller that wants to start a server has to do. For the decision `start`, records the state `starting`,
 * a reserved port, a launch id and the caller's claim.
 */
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
  // Copy `fresh`, because the store runs this function again if another writer commits first, and that writer may have
  // taken the port.
  const server = found ?? { ...intent.fresh };
  const stopping = server.state === "draining";
  const leftover = { launchId: server.launchId, process: endingProcess(server), sandbox: server.sandbox, stopping };
  Object.assign(server, intent.settings);
  server.logStart = logSize(server.home);
  server.port ??= choosePort(registry, intent.range, new Set(), server.lastPort);
  server.lastPort = server.port;
  server.state = "starting";
  server.startedAt = intent.now;
  server.launchId = intent.launchId;
  server.process = null;
  delete server.ending;
  server.failure = null;
  if (!intent.supervised) delete server.crashes;
  server.claim = intent.claim;
  registry.servers[id] = server;
  return { kind: "start", server, leftover };
}

/** Whether the server runs, and no command is starting or stopping it. */
export function isServing(server: ServerRecord): boolean {
  return (server.state === "ready" || server.state === "unhealthy") && isRunning(server) && !isHeld(server.claim);
}

type StopDecision =
  | { kind: "absent" }
  | { kind: "stopped"; server: ServerRecord }
  | { kind: "busy"; server: ServerRecord }
  /** The caller stops the server; `from` is the state before the stop. */
  | { kind: "stop"; server: ServerRecord; from: ServerState };

/**
 * Claims a server for a stop, unless the stop is unnecessary or another command has a claim. The port stays reserved
 * until the process is gone.
 *
 * @param options.stays whether the server should still run, because it will be started again
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
    // Nothing is left of the failed server, so only its record changes.
    server.state = "stopped";
    server.failure = null;
    return { kind: "stopped", server };
  }
  const from = server.state;
  server.process = endingProcess(server);
  delete server.ending;
  server.state = "draining";
  server.claim = claim;
  return { kind: "stop", server, from };
}

/** The process of the record, or the process that an interrupted stop was about to end. */
export function endingProcess({ process, ending }: Pick<ServerRecord, "process" | "ending">): ProcessIdentity | null {
  return process ?? ending ?? null;
}

/**
 * Undoes a stop that a signal cancelled, or whose command died while it waited for turns. The server keeps running,
 * because ending it would cut those turns. @param from the state before the stop
 */
export function giveUpStop(server: ServerRecord, from: ServerState): void {
  server.process = endingProcess(server);
  delete server.ending;
  server.claim = null;
  // An earlier stop that was interrupted may have recorded that the server should not run.
  if (isRunning(server) && server.desired === "stopped") server.desired = "running";
  if (from !== "draining") server.state = from;
  else if (isRunning(server)) server.state = "ready";
  // Without a recorded process, the server was never ready, so the next command treats it as an interrupted start. If
  // the recorded process has ended, the earlier stop ended it, so the state stays `draining` and the next command
  // records the end.
  else if (server.process === null) server.state = "starting";
}

/**
 * Changes the record of a server on which this process holds the claim.
 *
 * @throws FleetError `FLEET_SERVER_CONFLICT` when this process no longer holds the claim, for example because another
 * process took it while this one was suspended.
 */
export async function changeClaimed<T>(
  store: Store,
  { id, launchId }: Pick<ServerRecord, "id" | "launchId">,
  change: (record: ServerRecord) => T,
): Promise<T> {
  return await store.registry.update((registry) => change(ownClaim(registry, id, launchId)));
}

/** The record of a server on which this process holds the claim. @throws as {@link changeClaimed}. */
export function ownClaim(registry: Registry, id: string, launchId: string | null): ServerRecord {
  const server = registry.servers[id];
  if (server === undefined || server.launchId !== launchId || !isSelf(server.claim)) {
    throw serverTaken(id);
  }
  return server;
}

export function serverTaken(id: string): FleetError {
  return new FleetError("FLEET_SERVER_CONFLICT", `Another command took over server ${id}.`, {
    suggestions: ["copilotfleet ps"],
  });
}

export function holderOf({ claim }: ServerRecord): string {
  return claim === null ? "another command" : `process ${claim.pid}`;
}

function isSelf(claim: ProcessIdentity | null): boolean {
  const self = ownIdentity();
  return claim !== null && claim.pid === self.pid && claim.startTicks === self.startTicks && isAlive(claim);
}

/** Records the end of a successful start: the server runs, and should run. */
export function recordReady(server: ServerRecord, running: { process: ProcessIdentity; version: string }): void {
  server.state = "ready";
  server.process = running.process;
  server.version = running.version;
  server.noDelay = sendsWithoutDelay(server);
  server.failure = null;
  server.desired = "running";
  server.claim = null;
  delete server.ending;
}

/**
 * After a server has run for this long, or for this many health intervals if that is shorter, earlier crashes no longer
 * count.
 */
const STABLE_MS = 60_000;
const STABLE_INTERVALS = 12;

export function countCrash(server: ServerRecord, nowMs: number, { intervalMs }: Config["health"]): void {
  const ranMs = server.process === null ? 0 : nowMs - Date.parse(server.startedAt ?? "");
  const isStable = ranMs >= Math.min(STABLE_MS, STABLE_INTERVALS * intervalMs);
  server.crashes = (isStable ? 0 : (server.crashes ?? 0)) + 1;
}

/** Records the end of a transition after which no process of the server runs. Frees the port and removes the claim. */
export function recordEnd(server: ServerRecord, state: "stopped" | "failed", failure: string | null): void {
  server.state = state;
  server.failure = failure;
  server.port = null;
  server.process = null;
  delete server.ending;
  server.launchId = null;
  server.startedAt = null;
  server.claim = null;
  server.replacement = null;
}

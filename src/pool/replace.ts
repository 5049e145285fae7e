import { randomUUID } from "node:crypto";
import { isFleetError } from "../errors.js";
import { findRuntime } from "../runtime/find.js";
import { isAlive } from "../runtime/process-table.js";
import { readConnectionToken } from "../runtime/server-folder.js";
import { logSize } from "../runtime/server-log.js";
import { stopServer } from "../runtime/stop.js";
import type { Claim, Registry, Replacement, ServerRecord } from "../store/store.js";
import { closedBy, poolDraining } from "./admission.js";
import { answerOf } from "./adopt.js";
import { giveUpStop, ownClaim, serverTaken, settleReady } from "./claim.js";
import { allCut, type DrainResult } from "./drain.js";
import { drainForGood } from "./ending.js";
import { HeldClaim, isHeld } from "./held-claim.js";
import { launchOnFreePort } from "./launching.js";
import { choosePort } from "./ports.js";
import { isRunning } from "./server.js";
import { githubToken, type StarterContext } from "./start.js";
import { type Stopped, TERMINATE_GRACE_MS } from "./stopping.js";

export interface ReplaceOptions {
  /** How long turns in flight may take to end, in milliseconds. */
  drainTimeoutMs: number;
  /** What if they do not: cut them, or leave everything as it was. */
  late: "cut" | "leave";
  /** Aborted before the old process is stopped: everything is left as it was. */
  signal: AbortSignal;
}

export type Replaced =
  /** The new process is the server now. */
  | { kind: "replaced"; server: ServerRecord; stopped: Stopped }
  /** There were turns until the end, and `late` was `leave`. */
  | { kind: "busy"; sessions: string[] }
  /** It does not run, or somebody else moves it at the moment. */
  | { kind: "unavailable" };

const NEVER = new AbortController().signal;

/**
 * Replaces a running server by a new process for the same user, on the same home: starts that one, on a port of its own;
 * once it answers, drains the old one and stops it; then the new one is the server. If it does not come to answer, the
 * old one goes on as if nothing had been. No session is open in both: until the swap nobody is sent to the new one.
 *
 * @throws FleetError as `startServer`; the signal's reason.
 */
export async function replaceServer(context: StarterContext, id: string, options: ReplaceOptions): Promise<Replaced> {
  const { store, config } = context;
  const runtimePath = findRuntime(config.runtime.path, context.env).path;
  const known = (await store.readRegistry()).servers[id];
  if (known === undefined || !isRunning(known)) return { kind: "unavailable" };
  const token = await githubToken(context, known, known.token, options.signal);
  const launchId = randomUUID();
  using held = new HeldClaim();
  const old = await store.updateRegistry((registry) =>
    claimReplacement(registry, id, { launchId, claim: held.claim }, context),
  );
  if (old === null) return { kind: "unavailable" };
  try {
    const launched = await launchOnFreePort(
      context,
      {
        server: old,
        runtimePath,
        launchId,
        port: old.replacement.port,
        // The same for both: whoever has connected to the one may connect to the other.
        connectionToken: readConnectionToken(old.home),
        githubToken: token,
        nextPort: async (tried) =>
          await store.updateRegistry((registry) => {
            const replacement = ownReplacement(registry, id, launchId);
            replacement.port = choosePort(registry, config.ports, tried, null);
            return replacement.port;
          }),
      },
      options.signal,
    );
    const draining = await store.updateRegistry((registry) => {
      ownReplacement(registry, id, launchId).process = launched.identity;
      return claimSwap(registry, id, old.launchId, held.claim);
    });
    if (!draining) return await abandon(context, id, launchId, { kind: "unavailable" });
    const drained = await drainOrGiveUp(context, old, options);
    if (drained.cut.length > 0 && options.late === "leave") {
      return await abandon(context, id, launchId, { kind: "busy", sessions: drained.cut });
    }
    const outcome = await stopServer(old, { graceMs: TERMINATE_GRACE_MS });
    const server = await store.updateRegistry((registry) => {
      const record = ownClaim(registry, id, old.launchId);
      record.runtimePath = runtimePath;
      promote(record, launched.identity, launched.version);
      return record;
    });
    const cut = allCut(old, drained);
    return {
      kind: "replaced",
      server,
      stopped: { id, outcome: outcome === "terminated" && cut.length === 0 ? "drained" : "killed", cut },
    };
  } catch (error) {
    await abandon(context, id, launchId, null);
    throw error;
  }
}

/** A running server with an intent to replace it on record. */
type Replaceable = ServerRecord & { replacement: Replacement };

function claimReplacement(
  registry: Registry,
  id: string,
  { launchId, claim }: Pick<Replacement, "launchId" | "claim">,
  { config }: StarterContext,
): Replaceable | null {
  const by = closedBy(registry);
  if (by !== null) throw poolDraining(by);
  const server = registry.servers[id];
  if (server === undefined || !isRunning(server) || isHeld(server.claim)) return null;
  if (server.state !== "ready" && server.state !== "unhealthy") return null;
  if (server.replacement != null && isHeld(server.replacement.claim)) return null;
  const port = choosePort(registry, config.ports, new Set(), null);
  const logStart = logSize(server.home);
  const replacement = { launchId, port, process: null, claim, startedAt: new Date().toISOString(), logStart };
  server.replacement = replacement;
  server.claim = null; // left by somebody who died
  return { ...server, replacement };
}

/** The old process is drained under the claim of a stop. */
function claimSwap(registry: Registry, id: string, launchId: string | null, claim: Claim): boolean {
  const server = registry.servers[id];
  if (server === undefined || server.launchId !== launchId || !isRunning(server) || isHeld(server.claim)) {
    return false;
  }
  server.state = "draining";
  server.claim = claim;
  return true;
}

async function drainOrGiveUp(
  { store, config }: StarterContext,
  old: ServerRecord,
  options: ReplaceOptions,
): Promise<DrainResult> {
  const giveUp = async () => {
    await store.updateRegistry((registry) => giveUpStop(ownClaim(registry, old.id, old.launchId), old.state));
  };
  const wait = {
    timeoutMs: options.drainTimeoutMs,
    answerMs: config.health.timeoutMs,
    signal: options.signal,
    hurry: NEVER,
    late: options.late,
    stays: true,
  };
  const drained = await drainForGood(store, old, wait).catch(async (error: unknown) => {
    await giveUp();
    throw error;
  });
  if (drained.cut.length > 0 && options.late === "leave") await giveUp();
  return drained;
}

/** Ends the replacement and forgets it; the old process is not touched. */
async function abandon<T>({ store }: StarterContext, id: string, launchId: string, result: T): Promise<T> {
  await stopServer({ process: null, launchId, home: null }, { graceMs: 0, force: true });
  await store.updateRegistry(({ servers }) => {
    const server = servers[id];
    if (server?.replacement?.launchId === launchId) server.replacement = null;
  });
  return result;
}

function ownReplacement(registry: Registry, id: string, launchId: string): Replacement {
  const replacement = registry.servers[id]?.replacement;
  if (replacement?.launchId === launchId) return replacement;
  throw serverTaken(id);
}

/** The replacement becomes the server. */
function promote(server: ServerRecord, process: NonNullable<ServerRecord["process"]>, version: string): void {
  const { replacement } = server;
  if (replacement == null) throw serverTaken(server.id);
  server.launchId = replacement.launchId;
  server.port = replacement.port;
  server.lastPort = replacement.port;
  server.startedAt = replacement.startedAt;
  if (replacement.logStart === undefined) delete server.logStart;
  else server.logStart = replacement.logStart;
  server.replacement = null;
  settleReady(server, { process, version });
}

/**
 * Finishes what a command that died left of a replacement: if the old process is gone and the new one answers, it is
 * the server now; otherwise what there is of it goes. The caller holds the claim on the record.
 */
export async function mendReplacement(
  context: StarterContext,
  server: ServerRecord,
  signal: AbortSignal,
): Promise<boolean> {
  const { replacement } = server;
  if (replacement == null) return false;
  const { launchId, port, process } = replacement;
  if (!isRunning(server) && process !== null && isAlive(process)) {
    const version = await answerOf(server, port, signal).catch((error: unknown) => {
      if (isFleetError(error)) return null;
      throw error;
    });
    if (version !== null) {
      await stopServer({ process: null, launchId: server.launchId, home: null }, { graceMs: 0, force: true });
      await context.store.updateRegistry((registry) =>
        promote(ownClaim(registry, server.id, server.launchId), process, version),
      );
      return true;
    }
  }
  await abandon(context, server.id, launchId, null);
  return false;
}

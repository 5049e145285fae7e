import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";
import { deadline } from "../base/clock.js";
import { FleetError, isFleetError, option, quote } from "../base/errors.js";
import { sandboxReport } from "../base/sandbox.js";
import type { NamedSource, RecordedSource, Registry, Replacement, ServerRecord, TokenSource } from "../base/server.js";
import { system } from "../base/system/system.js";
import { refuseSuspended } from "../base/usage.js";
import { parseObject } from "../base/values/text.js";
import { tokenSourceFromConfig } from "../providers/github-token.js";
import { tokensOf } from "../providers/github-tokens.js";
import {
  createServerFolder,
  homeOf,
  logPath,
  readConnectionToken,
  replaceServerFile,
  unwritable,
  writeConnectionToken,
} from "../runtime/files/server-folder.js";
import { appendToLog } from "../runtime/files/server-log.js";
import { ensureNote } from "../runtime/files/shared-storage.js";
import {
  closedFolder,
  type Launch,
  type LaunchedServer,
  launchServer,
  ownLimit,
  PortTakenError,
} from "../runtime/launch/launch.js";
import { findRuntime } from "../runtime/launch/versions.js";
import { probe, withBridge } from "../runtime/process/probe.js";
import { asServer, isAlive, processesOfLaunch, writersOf } from "../runtime/process/process-table.js";
import { logEnd, logStop, stopServer, UNFINISHED } from "../runtime/process/stop.js";
import type { Sandbox } from "../sandbox/sandbox.js";
import { readIfThere } from "../store/file/failures.js";
import { refuseErased } from "../store/purges.js";
import type { Store } from "../store/store.js";
import { poolDraining, reachesHost } from "./admission.js";
import {
  changeClaimed,
  claimStart,
  countCrash,
  holderOf,
  type Leftover,
  ownClaim,
  recordEnd,
  recordReady,
  type StartDecision,
} from "./claims.js";
import { HeldClaim, isRunning, untilUnclaimed } from "./server.js";
import { choosePort, isBindable, keepSessions, type PoolContext, sandboxOf, sessionStateOf } from "./surroundings.js";

export interface SpawnOptions {
  /** The source of the server's GitHub token. Default: the source of the last start, or else the configured one. */
  token?: TokenSource | undefined;
  /** The token itself, if `token` is `{from: "caller"}`. It stays in memory and is never recorded. */
  tokenValue?: string | undefined;
  cwd?: string | undefined;
  /**
   * Aborts, together with `signal`, when the caller no longer needs the server. A start that fails because of this does
   * not count as a crash.
   */
  calledOff?: AbortSignal | undefined;
  /**
   * Shares the start with the other callers in this process that pass this option. The start then ignores `signal`. It
   * ends when the first caller's `sharedUntil` aborts, or after 30 s.
   */
  sharedUntil?: AbortSignal | undefined;
  signal: AbortSignal;
}

export interface StartRequest extends SpawnOptions, Pick<ServerRecord, "id" | "user" | "isolation"> {
  /** Whether `serve` starts the server to keep it running. If so, its earlier crashes still count. */
  supervised?: boolean;
}

export interface StartResult {
  server: ServerRecord;
  /** False if the server was already running, or was adopted. */
  created: boolean;
}

export const ADDRESS = "127.0.0.1";

/**
 * Starts the requested server, or returns it if it runs. Records the start first. After a crash at any point, the next
 * command finds that record, and adopts the server or ends what is left of it.
 */
export async function startServer(context: PoolContext, request: StartRequest): Promise<StartResult> {
  const { store, config, env } = context;
  const { signal } = request;
  const known = (await store.registry.read()).servers[request.id];
  // Make every check that can refuse the start before recording anything.
  if (request.user !== null) {
    await refuseErased(store, request.user);
    refuseSuspended(await store.limits.read(request.user));
  }
  const runtime = findRuntime(config.runtime.path, env);
  const fresh = newRecord(context.stateRoot, request);
  const sandbox = await sandboxOf(context, {
    ...fresh,
    cwd: request.cwd ?? known?.cwd ?? fresh.cwd,
    runtimePath: runtime.path,
  });
  let token: Promise<string | null> | undefined;
  const readToken = async (server: ServerRecord) => {
    token ??= githubToken(context, request, request.token ?? tokenSourceOf(context, server), signal);
    return await token;
  };
  if (known === undefined || !isRunning(known)) await readToken(known ?? fresh);
  if (known === undefined && store.hosts !== null) ensureNote(context.stateRoot, store.hosts.own);

  using held = new HeldClaim();
  for (;;) {
    const decision = await store.registry.update((registry) =>
      claimStart(registry, request.id, {
        launchId: randomUUID(),
        range: config.ports,
        now: new Date().toISOString(),
        supervised: request.supervised ?? false,
        claim: held.claim,
        fresh,
        settings: {
          ...(request.token === undefined ? {} : { token: kindOf(request.token) }),
          runtimePath: runtime.path,
          sandbox: sandboxReport(sandbox),
          ...(request.cwd === undefined ? {} : { cwd: request.cwd }),
        },
      }),
    );
    switch (decision.kind) {
      case "closed":
        throw poolDraining(decision.by);
      case "running":
        refuseOtherSettings(context, decision.server, request);
        return { server: decision.server, created: false };
      case "busy":
        if (signal.aborted) throw stillBusy(decision.server, signal);
        await untilUnclaimed(store, request.id, { signal });
        continue;
      case "adopt": {
        const adopted = await adoptServer(store, decision.server, signal);
        if (adopted === null) continue;
        refuseOtherSettings(context, adopted, request);
        return { server: adopted, created: false };
      }
      case "start": {
        const server = await launchClaimed(context, decision, request, { readToken, sandbox });
        context.events.note({ type: "server.started", user: server.user, serverId: server.id });
        return { server, created: true };
      }
    }
  }
}

/** The record of a server that has not been started. */
export function newRecord(
  stateRoot: string,
  { id, user, isolation }: Pick<ServerRecord, "id" | "user" | "isolation">,
): ServerRecord {
  const home = homeOf(stateRoot, id);
  return {
    id,
    user,
    isolation,
    state: "starting",
    createdAt: new Date().toISOString(),
    startedAt: null,
    address: ADDRESS,
    port: null,
    lastPort: null,
    launchId: null,
    process: null,
    claim: null,
    home,
    cwd: home,
    token: null,
    runtimePath: "",
    version: null,
    failure: null,
  };
}

async function launchClaimed(
  context: PoolContext,
  claimed: Extract<StartDecision, { kind: "start" }>,
  { calledOff, signal, token }: StartRequest,
  { readToken, sandbox }: { readToken: (server: ServerRecord) => Promise<string | null>; sandbox: Sandbox },
): Promise<ServerRecord> {
  const { id, home } = claimed.server;
  const launchId = claimed.server.launchId ?? "";
  const { store } = context;
  let launched: LaunchedServer | undefined;
  try {
    await endLeftover(home, claimed.leftover);
    const githubToken = await readToken(claimed.server);
    createServerFolder(home);
    if (token !== undefined) noteTokenSource(home, token);
    await keepSessions(context, claimed.server);
    launched = await launchOnFreePort(
      context,
      {
        server: claimed.server,
        runtimePath: claimed.server.runtimePath,
        launchId,
        port: claimed.server.port ?? 0,
        connectionToken: writeConnectionToken(home),
        githubToken,
        sandbox,
      },
      signal,
    );
    const { identity, version } = launched;
    return await store.registry.update((registry) => {
      const adopted = registry.servers[id];
      // Another process may have mistaken this process for dead, and adopted the server.
      if (adopted?.launchId === launchId && adopted.process?.pid === identity.pid) return adopted;
      const server = ownClaim(registry, id, launchId);
      recordReady(server, { process: identity, version });
      return server;
    });
  } catch (error) {
    // Stop the server even if it was never ready, because it may have started other processes.
    await stopServer(
      { process: launched?.identity ?? null, launchId, home: null, sandbox },
      { graceMs: 0, force: true },
    );
    const off = calledOff?.aborted === true;
    const reason = error instanceof Error ? error.message : String(error);
    await store.registry.update((registry) => {
      const server = registry.servers[id];
      if (server?.launchId !== launchId) return;
      // A cancelled start, a full disk, a lack of processes and a missing share do not count as crashes of this server.
      const isOwn = ownLimit(error) === undefined && !isFleetError(error, "FLEET_STORAGE_UNUSABLE");
      if (!off && isOwn) countCrash(server, Date.now(), context.config.health);
      recordEnd(server, "failed", off ? "its start was cancelled" : reason);
    });
    const about = { user: claimed.server.user, serverId: id, reason: isFleetError(error) ? error.code : null };
    context.events.note({ ...about, type: "server.started", outcome: "failed" });
    throw error;
  }
}

const PORT_ATTEMPTS = 64;

/** Launches on the reserved port. If a program outside the fleet has that port, reserves the next free port. */
export async function launchOnFreePort(
  context: PoolContext,
  launch: Omit<Launch, "settings" | "env" | "stateRoot" | "copilotHome" | "sessionState"> & { server: ServerRecord },
  signal: AbortSignal,
): Promise<LaunchedServer> {
  const { store, config, env, stateRoot } = context;
  const { server, launchId, sandbox } = launch;
  const { home, isolation } = server;
  const isOpen = reachesHost({ own: isolation === "per-user", config, sandbox });
  const copilotHome = isOpen ? home : closedFolder(home);
  const sessionState = sessionStateOf(context, server);
  const { network, allow } = config.sandbox;
  if (network === "allow-list") {
    const { openEgress } = await import("../sandbox/network/egress.js");
    await openEgress(stateRoot, launchId, { user: server.user, server: server.id, allow });
  }
  const start = { settings: config.runtime, env, stateRoot, copilotHome, sessionState };
  const tried = new Set<number>();
  let { port } = launch;
  while (tried.size < PORT_ATTEMPTS) {
    if (await isBindable(server.address, port)) {
      try {
        return await launchServer({ ...launch, ...start, port }, signal);
      } catch (error) {
        if (!(error instanceof PortTakenError)) throw error;
      }
    }
    tried.add(port);
    port = await store.registry.update((registry) => {
      const record = recordOfLaunch(registry, server.id, launchId);
      record.port = null; // another program has this port, so the server no longer holds it
      record.port = choosePort(registry, config.ports, tried, null);
      if ("lastPort" in record) record.lastPort = record.port;
      return record.port;
    });
  }
  throw new FleetError("FLEET_PORTS_EXHAUSTED", `${PORT_ATTEMPTS} ports in a row were taken by other programs.`, {
    suggestions: ["Choose another range: ports.from and ports.to in the configuration."],
  });
}

/** The record of this launch: the server's replacement if it has this launch id, or else the server's own record. */
function recordOfLaunch(registry: Registry, id: string, launchId: string): ServerRecord | Replacement {
  const replacement = registry.servers[id]?.replacement;
  return replacement?.launchId === launchId ? replacement : ownClaim(registry, id, launchId);
}

export async function githubToken(
  { config, env }: Pick<PoolContext, "config" | "env">,
  { user, tokenValue }: Pick<StartRequest, "user" | "tokenValue">,
  source: TokenSource | null,
  signal: AbortSignal,
): Promise<string | null> {
  if (source === null) return null;
  if (tokenValue !== undefined) return tokenValue;
  return await tokensOf(config, env).get(source, { user, signal });
}

/** Refuses settings that differ from those of the running server. */
function refuseOtherSettings(context: PoolContext, server: ServerRecord, { token, cwd }: StartRequest): void {
  const conflict = (what: string) =>
    new FleetError("FLEET_SERVER_CONFLICT", `Server ${server.id} already runs ${what}.`, {
      suggestions: [`copilotfleet stop ${server.id}`],
    });
  if (token !== undefined && !isDeepStrictEqual(token, tokenSourceOf(context, server)))
    throw conflict("with another GitHub token source than the requested one");
  if (cwd !== undefined && resolve(cwd) !== resolve(server.cwd))
    throw conflict(`in folder ${quote(server.cwd)}, not in the requested ${quote(cwd)}`);
}

function stillBusy(server: ServerRecord, signal: AbortSignal): FleetError {
  return new FleetError(
    "FLEET_SERVER_START_TIMEOUT",
    `Server ${server.id} is still ${server.state}, because ${holderOf(server)} did not finish in time.`,
    {
      cause: signal.reason,
      suggestions: ["copilotfleet ps", `Wait longer with ${option("wait", "60s")}.`],
    },
  );
}

/*
 * A server's record contains at most the kind of the source of its GitHub token, such as a variable or a file. It does
 * not name the variable or the file, because somebody other than the fleet may be able to write records. The complete
 * source is in the configuration, or if it was passed to the server's start, in a file beside the server's home.
 */

type Known = Pick<ServerRecord, "id" | "user" | "isolation" | "token">;

function pathOf(home: string): string {
  return join(dirname(home), "token-source.json");
}

/** The kind of a source: the only part that a record contains. */
function kindOf({ from }: TokenSource): RecordedSource {
  return { from };
}

/**
 * Stores the token source that was passed to a server's start in the file beside the server's home. The caller must
 * hold the claim on the server.
 */
function noteTokenSource(home: string, source: TokenSource): void {
  const path = pathOf(home);
  try {
    replaceServerFile(path, `${JSON.stringify(source)}\n`);
  } catch (cause) {
    throw unwritable(path, cause);
  }
}

/**
 * The source of a server's GitHub token; null if the server has none.
 *
 * @throws FleetError `FLEET_TOKEN_UNAVAILABLE` when the record names a source that is neither in the configuration nor
 * in the file beside the server's home. In this case, the fleet reads no variable and no file, and runs no program.
 */
export function tokenSourceOf({ config, stateRoot }: PoolContext, server: Known): TokenSource | null {
  const { id, user, isolation, token } = server;
  // On a shared server, each session brings its owner's GitHub token. The server itself has a token only if it was
  // started with one.
  const configured = isolation === "shared" ? null : tokenSourceFromConfig(config.auth, user);
  if (token === null || isDeepStrictEqual(token, configured)) return configured;
  if (token.from === "caller") return { from: "caller" };
  const path = pathOf(homeOf(stateRoot, id));
  const noted = readIfThere(path, () => readFileSync(path, "utf8"));
  const source = noted === undefined ? undefined : (parseObject(noted) as NamedSource | undefined);
  if (source?.from === token.from) return source;
  const why = "the source of its GitHub token was given at its start, and this host has no note of it";
  throw new FleetError("FLEET_TOKEN_UNAVAILABLE", `Server ${quote(id)} does not start, because ${why}.`, {
    suggestions: ["copilotfleet spawn --user USER --token-env VAR", "Set auth.githubToken."],
  });
}

const BUSY_POLL_MS = 20;
const ADOPT_WAIT_MS = 5_000;

/**
 * Adopts a server after the command that was starting it has died. If the server's process does not answer, ends all of
 * its processes, records the server as failed and resolves with null. The caller holds the claim.
 */
export async function adoptServer(
  store: Store,
  server: ServerRecord,
  signal: AbortSignal,
): Promise<ServerRecord | null> {
  const { launchId, port, sandbox } = server;
  using limit = deadline(ADOPT_WAIT_MS, signal);
  for (;;) {
    // Look for writers of the log first. `processesOfLaunch` does not find a child before it calls exec, because the
    // child still has its parent's environment. But the child already has the log open.
    const writers = writersOf(logPath(server.home));
    const processes = launchId === null ? [] : processesOfLaunch(launchId);
    const listener = port === null ? undefined : processes.find(({ pid }) => system().processes.listensOn(pid, port));
    const found = listener === undefined ? null : asServer(listener);
    // The PID of a server inside bwrap equals its bwrap's PID outside. If no process of the launch has that PID, the
    // listener is in a PID namespace that somebody else made.
    const isOwn = found?.innerPid === undefined || processes.some(({ pid }) => pid === found.innerPid);
    const identity = found === null || port === null || !isOwn ? null : withBridge(found, { port, sandbox });
    if (identity !== null && port !== null) {
      const version = await answerOf(server, port, limit.signal);
      if (version !== null && isAlive(identity)) {
        const text = `Process ${identity.pid} answers on port ${port} (version ${version}).`;
        appendToLog(server.home, `${text} Its starter had ended, so process ${process.pid} adopted it.`);
        return await changeClaimed(store, server, (record) => {
          recordReady(record, { process: identity, version });
          return record;
        });
      }
    }
    if ((processes.length === 0 && writers.length === 0) || limit.signal.aborted) break;
    await delay(BUSY_POLL_MS);
  }
  await stopServer({ process: null, launchId, home: server.home, sandbox }, { graceMs: 0, force: true });
  logEnd(server);
  const failure = "the command that started it ended before it was ready";
  await changeClaimed(store, server, (record) => recordEnd(record, "failed", failure));
  return null;
}

/** Ends all processes of an earlier launch, and writes to the log how the launch ended. The caller holds the claim. */
export async function endLeftover(home: string, { launchId, process, sandbox, stopping }: Leftover): Promise<void> {
  if (launchId === null) return;
  const outcome = process !== null && isAlive(process) ? "killed" : "already-stopped";
  await stopServer({ process: null, launchId, home, sandbox }, { graceMs: 0 });
  logStop({ home, launchId, process }, outcome, { because: UNFINISHED, stopping });
}

/**
 * The version that the process on this port reports. Null if the process does not answer, or if the file with the
 * server's connection token is gone.
 */
export async function answerOf(
  { address, home }: ServerRecord,
  port: number,
  signal: AbortSignal,
): Promise<string | null> {
  try {
    return await probe({ address, port, token: readConnectionToken(home) }, signal);
  } catch (error) {
    if (isFleetError(error)) return null;
    throw error;
  }
}

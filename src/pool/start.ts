import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import type { Config } from "../config/schema.js";
import { FleetError, isFleetError, quote } from "../errors.js";
import { resolveGitHubToken } from "../models/github-token.js";
import { deadline } from "../runtime/deadline.js";
import { GITHUB_TOKEN_VARIABLE, serverEnvironment } from "../runtime/environment.js";
import { findRuntime } from "../runtime/find.js";
import { type LaunchedServer, launchServer, PortTakenError } from "../runtime/launch.js";
import { probe } from "../runtime/probe.js";
import { isAlive, ownsListener, processesOfLaunch, writersOf } from "../runtime/process-table.js";
import {
  createServerFolder,
  homeOf,
  logPath,
  readConnectionToken,
  shareSessionState,
  writeConnectionToken,
} from "../runtime/server-folder.js";
import { stopServer } from "../runtime/stop.js";
import type { Isolation, ServerRecord, Store, TokenSource } from "../store/store.js";
import { claimStart, holderOf, ownClaim, settle } from "./claim.js";
import { choosePort, isBindable } from "./ports.js";
import { isRunning } from "./server.js";

export interface StarterContext {
  store: Store;
  config: Config;
  stateRoot: string;
  env: NodeJS.ProcessEnv;
}

export interface StartRequest {
  id: string;
  user: string | null;
  isolation: Isolation;
  /** Where its GitHub token comes from; undefined: as recorded, or as configured. */
  token?: TokenSource | null | undefined;
  /** A token handed over in memory, with `token: {from: "caller"}`. */
  tokenValue?: string | undefined;
  cwd?: string | undefined;
}

export interface StartResult {
  server: ServerRecord;
  /** False if it was running already. */
  created: boolean;
}

const ADDRESS = "127.0.0.1";
const BUSY_POLL_MS = 20;
/** How many ports in a row may turn out to be taken between the look and the bind before it is called exhaustion. */
const PORT_ATTEMPTS = 64;
const ADOPT_WAIT_MS = 5_000;

/**
 * Starts the server of a request, or returns the one that runs. The intent is recorded first; process and network work
 * happens outside the registry's lock; a crash at any point leaves an intent that the next command adopts or clears.
 *
 * @throws FleetError as `findRuntime`, `resolveGitHubToken` and `launchServer`; `FLEET_PORTS_EXHAUSTED`;
 * `FLEET_SERVER_START_TIMEOUT`; `FLEET_SERVER_CONFLICT`.
 */
export async function startServer(
  context: StarterContext,
  request: StartRequest,
  configured: TokenSource | null,
  signal: AbortSignal,
): Promise<StartResult> {
  const { store, config, env } = context;
  const known = (await store.readRegistry()).servers[request.id];
  // Everything that can be refused is refused before anything is recorded.
  const runtime = findRuntime(config.runtime.path, env);
  const source = request.token === undefined ? (known?.token ?? configured) : request.token;
  let token: Promise<string | null> | undefined;
  const readToken = () => (token ??= githubToken(context, request, source, signal));
  if (known === undefined || !isRunning(known)) await readToken();

  for (;;) {
    const launchId = randomUUID();
    const decision = await store.updateRegistry((registry) =>
      claimStart(registry, request.id, {
        launchId,
        range: config.ports,
        now: new Date().toISOString(),
        create: () => newRecord(context, request),
        amend: (server) => {
          server.token = source;
          server.runtimePath = runtime.path;
          server.cwd = request.cwd ?? server.cwd;
        },
      }),
    );
    switch (decision.kind) {
      case "running":
        refuseOtherToken(decision.server, request);
        return { server: decision.server, created: false };
      case "busy":
        if (signal.aborted) throw stillBusy(decision.server, signal);
        await delay(BUSY_POLL_MS);
        continue;
      case "adopt": {
        const adopted = await adoptServer(store, decision.server, signal);
        if (adopted === null) continue;
        refuseOtherToken(adopted, request);
        return { server: adopted, created: false };
      }
      case "start":
        return { server: await launchClaimed(context, decision, readToken, signal), created: true };
    }
  }
}

function newRecord(context: StarterContext, request: StartRequest): ServerRecord {
  const home = homeOf(context.stateRoot, request.id);
  return {
    id: request.id,
    user: request.user,
    isolation: request.isolation,
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
  context: StarterContext,
  claimed: { server: ServerRecord; leftover: string | null },
  readToken: () => Promise<string | null>,
  signal: AbortSignal,
): Promise<ServerRecord> {
  const { id, launchId, home } = claimed.server;
  const { store } = context;
  let launched: LaunchedServer | undefined;
  try {
    if (claimed.leftover !== null)
      await stopServer({ process: null, launchId: claimed.leftover, home }, { graceMs: 0 });
    launched = await launchOnFreePort(context, claimed.server, await readToken(), signal);
    const { identity, version } = launched;
    return await store.updateRegistry((registry) => {
      const adopted = registry.servers[id];
      // Somebody who took this process for dead found the server well, and has it recorded: nothing is left to do.
      if (adopted?.launchId === launchId && adopted.process?.pid === identity.pid) return adopted;
      const server = ownClaim(registry, id, launchId);
      server.state = "ready";
      server.process = identity;
      server.version = version;
      server.claim = null;
      return server;
    });
  } catch (error) {
    // Also when it was never ready: what it had started by then may have outlived it.
    await stopServer({ process: launched?.identity ?? null, launchId, home: null }, { graceMs: 0, force: true });
    const failure = error instanceof Error ? error.message : String(error);
    await store.updateRegistry((registry) => {
      const server = registry.servers[id];
      if (server?.launchId === launchId) settle(server, "failed", failure);
    });
    throw error;
  }
}

async function githubToken(
  context: StarterContext,
  { user, tokenValue }: StartRequest,
  source: TokenSource | null,
  signal: AbortSignal,
): Promise<string | null> {
  if (source === null) return null;
  if (tokenValue !== undefined) return tokenValue;
  return await resolveGitHubToken(source, { user, env: context.env, signal });
}

async function launchOnFreePort(
  context: StarterContext,
  server: ServerRecord,
  githubToken: string | null,
  signal: AbortSignal,
): Promise<LaunchedServer> {
  const { config, env, stateRoot } = context;
  createServerFolder(server.home);
  if (server.isolation === "shared") shareSessionState(stateRoot, server.home);
  const connectionToken = writeConnectionToken(server.home);
  const launchId = server.launchId ?? "";
  const environment = serverEnvironment(
    { home: server.home, connectionToken, launchId, stateRoot, githubToken, pass: config.runtime.env },
    env,
  );
  const tried = new Set<number>();
  let port = server.port ?? 0;
  for (;;) {
    if (await isBindable(server.address, port)) {
      try {
        return await launchServer(
          {
            runtimePath: server.runtimePath,
            args: config.runtime.args,
            address: server.address,
            port,
            home: server.home,
            cwd: server.cwd,
            environment,
            connectionToken,
            tokenVariable: githubToken === null ? null : GITHUB_TOKEN_VARIABLE,
            idleTimeoutSeconds:
              config.runtime.idleTimeoutMs === null ? null : Math.ceil(config.runtime.idleTimeoutMs / 1_000),
          },
          signal,
        );
      } catch (error) {
        if (!(error instanceof PortTakenError)) throw error;
      }
    }
    tried.add(port);
    port = await context.store.updateRegistry((registry) => {
      const record = ownClaim(registry, server.id, launchId);
      record.port = null;
      record.port = choosePort(registry, config.ports, tried, null);
      record.lastPort = record.port;
      return record.port;
    });
    if (tried.size >= PORT_ATTEMPTS) {
      throw new FleetError("FLEET_PORTS_EXHAUSTED", `${PORT_ATTEMPTS} ports in a row were taken by other programs.`, {
        suggestions: ["Choose another range: ports.from and ports.to in the configuration."],
      });
    }
  }
}

/**
 * Takes over a server whose starter died: if its process is there and answers, the record is completed; if not, what
 * there is of it is cleared away and the record says why. The caller holds the claim. Resolves with null if it was
 * cleared.
 */
export async function adoptServer(
  store: Store,
  server: ServerRecord,
  signal: AbortSignal,
): Promise<ServerRecord | null> {
  const { id, launchId, port } = server;
  using limit = deadline(ADOPT_WAIT_MS, signal);
  for (;;) {
    // Before the look at environments: between fork and exec a child still shows its parent's, but has its log already.
    const writers = writersOf(logPath(server.home));
    const processes = launchId === null ? [] : processesOfLaunch(launchId);
    const listener = port === null ? undefined : processes.find(({ pid }) => ownsListener(pid, port));
    if (listener !== undefined && port !== null) {
      const version = await answerOf(server, port, limit.signal);
      if (version !== null && isAlive(listener)) {
        return await store.updateRegistry((registry) => {
          const record = ownClaim(registry, id, launchId);
          record.state = "ready";
          record.process = listener;
          record.version = version;
          record.claim = null;
          return record;
        });
      }
    }
    if ((processes.length === 0 && writers.length === 0) || limit.signal.aborted) break;
    await delay(BUSY_POLL_MS);
  }
  await stopServer({ process: null, launchId, home: server.home }, { graceMs: 0, force: true });
  await store.updateRegistry((registry) => {
    settle(ownClaim(registry, id, launchId), "failed", "the command that started it ended before it was ready");
  });
  return null;
}

/** What an orphaned server says of itself; null when it does not answer, or its token is gone: it is of no use then. */
async function answerOf({ address, home }: ServerRecord, port: number, signal: AbortSignal): Promise<string | null> {
  try {
    return await probe({ address, port, token: readConnectionToken(home) }, signal);
  } catch (error) {
    if (isFleetError(error)) return null;
    throw error;
  }
}

/** A running server keeps the credential it was started with: asking for another one must not pass unnoticed. */
function refuseOtherToken(server: ServerRecord, request: StartRequest): void {
  if (request.token === undefined || JSON.stringify(request.token) === JSON.stringify(server.token)) return;
  throw new FleetError(
    "FLEET_SERVER_CONFLICT",
    `Server ${server.id} runs already, with another GitHub token source than the one asked for.`,
    { suggestions: [`copilotfleet stop ${server.id}`] },
  );
}

function stillBusy(server: ServerRecord, signal: AbortSignal): FleetError {
  return new FleetError(
    "FLEET_SERVER_START_TIMEOUT",
    `Server ${server.id} is ${server.state} by ${holderOf(server)}, and did not get done in time.`,
    { cause: signal.reason, suggestions: ["copilotfleet ps", `Wait longer: --wait 60s (server ${quote(server.id)})`] },
  );
}

import { type ChildProcess, type StdioOptions, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, fstatSync, constants as modes, openSync, symlinkSync } from "node:fs";
import { connect } from "node:net";
import { basename, dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { FleetError, isFleetError, option, systemCode } from "../../base/errors.js";
import { makeFolder, unlessThere } from "../../base/if-there.js";
import { EGRESS_ADDRESS, GATEWAY_END, type RestrictedNetwork, WAY_OUT_PORT } from "../../base/sandbox.js";
import { LAUNCH_VARIABLE, type ProcessIdentity, type ServerRecord } from "../../base/server.js";
import { system } from "../../base/system/system.js";
import type { Config } from "../../config/schema.js";
import { noDelayLibrary } from "../../sandbox/programs.js";
import type { Command, Sandbox } from "../../sandbox/sandbox.js";
import { logPath, writing } from "../files/server-folder.js";
import { appendLine, appendToLog, lastWords, launchText, makeLogKey, readLogKey } from "../files/server-log.js";
import { probe, withBridge } from "../process/probe.js";
import {
  asServer,
  endInBwrap,
  FLEET_VARIABLE,
  identify,
  isAlive,
  markOf,
  processesOfSession,
} from "../process/process-table.js";
import { noteEnd, sendSignal } from "../process/stop.js";
import { RpcError } from "../wire/rpc-client.js";

export interface LaunchedServer {
  identity: ProcessIdentity;
  version: string;
}

/** The runtime could not listen, because another process has the port. */
export class PortTakenError extends Error {
  override readonly name = "PortTakenError";
}

const POLL_MS = 4;
/**
 * Looking at the kernel's table of sockets takes a millisecond, so we wait until the runtime announces that it listens.
 * For a runtime that announces nothing, we look at the table once in this many polls.
 */
const UNANNOUNCED_POLLS = 25;
const ANNOUNCEMENT = /listening on port/i;

/**
 * Starts one server, detached so that it outlives this process. Resolves when the server answers an authenticated ping.
 * Rejects if the server cannot be started, if it exits, or if the signal aborts; in each case, no process of the server
 * keeps running. Sends the token only after the kernel has shown that the new process itself has the listening socket.
 */
export async function launchServer(launch: Launch, signal: AbortSignal): Promise<LaunchedServer> {
  await launch.sandbox.remember();
  const { child, logStart } = start(launch);
  let ended: string | null = null;
  const exit = endOf(child).then((own) => {
    const end = launch.sandbox.mode === "bwrap" ? endInBwrap(own) : own;
    ended = end?.signal ?? own.signal ?? `exit code ${own.code}`;
    return end;
  });

  const { pid } = child;
  if (pid === undefined) throw cannotStart(launch, await exit.catch((cause: unknown) => cause));
  try {
    const started = identify(pid);
    for (let poll = 0; ; poll++) {
      if (started === null || ended !== null) {
        await exit;
        throw exited(launch.server.home, logStart, ended ?? "an unknown reason");
      }
      if (signal.aborted) throw startTimeout(launch, signal);
      const due = poll % UNANNOUNCED_POLLS === UNANNOUNCED_POLLS - 1 || announced(launch.server.home, logStart);
      const identity = due ? listenerOf(started, launch) : null;
      if (identity !== null) {
        const version = await Promise.race([firstAnswer(launch, signal), exit.then(() => null)]);
        if (version !== null) {
          prepareForAgents(identity, launch);
          appendToLog(
            launch.server.home,
            `Process ${identity.pid} answers on port ${launch.port} (version ${version}).`,
          );
          // Unref the child only now, because this process must stay alive while it waits for a failed start to end.
          child.unref();
          void exit.then((end) => {
            // If somebody kills only bwrap, the runtime keeps running. In that case, this is not the server's end.
            if (end !== null && !isAlive(identity)) noteEnd(launch.server.home, launch.launchId, end);
          });
          return { identity, version };
        }
      }
      await Promise.race([delay(POLL_MS), exit]);
    }
  } catch (error) {
    if (ended === null) {
      // The child leads its own process group, which this process created, so its identity needs no check.
      sendSignal(-pid, "SIGKILL");
      await exit;
      appendToLog(launch.server.home, `Process ${pid} was killed before it answered.`);
    } else appendToLog(launch.server.home, `Process ${pid} ended before it answered: ${ended}.`);
    throw error;
  }
}

/**
 * The process that listens on the port of the launch: the process `started`, or with bwrap the runtime in its sandbox.
 * Null if it does not listen so far.
 */
function listenerOf(started: ProcessIdentity, { port, sandbox }: Launch): ProcessIdentity | null {
  const candidates = sandbox.mode === "bwrap" ? processesOfSession(started) : [started];
  const listener = candidates.find(({ pid }) => system().processes.listensOn(pid, port));
  if (listener === undefined) return null;
  const server = asServer(listener);
  // The runtime's PID inside bwrap equals bwrap's PID outside. A listener with another PID is another process in the
  // sandbox.
  if (sandbox.mode === "bwrap" && server.innerPid !== started.pid) return null;
  return withBridge(server, { port, sandbox });
}

/**
 * Makes the kernel end the server before `serve` when memory is used up. Removes the secrets from the environment that
 * the kernel shows to the server's agent. The runtime has read them before it listens (seen with 1.0.85). No agent runs
 * before this, because nobody else knows the server's token so far.
 */
function prepareForAgents(server: ProcessIdentity, { server: { home } }: Launch): void {
  // The processes of the sandbox started with the same environment.
  const alone = server.innerPid === undefined && server.bridge === undefined;
  const processes = alone ? [server] : processesOfSession(server);
  for (const { pid } of processes) system().processes.endFirst(pid);
  const hidden = processes.map(({ pid }) => system().processes.hideVariables(pid, [...SECRET_VARIABLES]));
  if (!hidden.includes(false)) return;
  appendToLog(
    home,
    "The server's environment still shows its tokens, because this system does not let us remove them.",
  );
}

/** Resolves when the process ends. Rejects if it could not be started. */
async function endOf(child: ChildProcess): Promise<{ code: number | null; signal: NodeJS.Signals | null }> {
  const [code, signal] = (await once(child, "exit")) as [number | null, NodeJS.Signals | null]; // rejects on "error"
  return { code, signal };
}

function start(launch: Launch): { child: ChildProcess; logStart: number } {
  const path = logPath(launch.server.home);
  makeLogKey(path);
  const { O_RDWR, O_WRONLY } = modes;
  const [log, output] = [openLog(path, O_RDWR), openLog(path, O_WRONLY)];
  try {
    appendLine(log, launchText(launch), readLogKey(path));
    const logStart = fstatSync(log).size;
    // The server cannot read its log through `output`, so its agent cannot repeat a signed line.
    return { child: spawnServer(launch, ["ignore", output, output, ...insteadOfInherited(output)]), logStart };
  } finally {
    closeSync(log);
    closeSync(output);
  }
}

/** Starts the server's process. Node.js reports most failures with the event `error`, and throws the others. */
function spawnServer(launch: Launch, stdio: StdioOptions): ChildProcess {
  const [program, ...args] = sandboxed(launch);
  try {
    const options = { cwd: launch.server.cwd, env: serverEnvironment(launch), detached: true, stdio };
    return spawn(program, args, options);
  } catch (cause) {
    throw cannotStart(launch, cause);
  }
}

let inherited: number[] | undefined;

/**
 * Returns the server's descriptors from 3 on. The server would inherit each descriptor that this process inherited from
 * its parent, so each is replaced with the server's output. Otherwise, for example, a server would keep the lock of a
 * shell's `exec 200>lock; flock 200` as long as it runs, and its agent could use the descriptor. Node.js itself closes
 * only the lowest of these descriptors.
 */
function insteadOfInherited(output: number): (number | "ignore")[] {
  inherited ??= system().processes.inheritedDescriptors();
  const isInherited = new Set(inherited);
  const beyond = Array.from({ length: Math.max(2, ...inherited) - 2 }, (_, index) => index + 3);
  return beyond.map((fd) => (isInherited.has(fd) ? output : "ignore"));
}

function sandboxed(launch: Launch): Command {
  const { sandbox, server, runtimePath, copilotHome, sessionState, port, launchId } = launch;
  const temporary = temporaryFolder(server.home);
  if (sandbox.mode !== "none") makeFolder(temporary);
  if (copilotHome !== server.home) linkSessions(copilotHome, server.home);
  const folders = { home: server.home, copilotHome, temporary, sessionState };
  return sandbox.wrap([runtimePath, ...commandLine(launch)], { ...folders, port, mark: markOf(launchId) });
}

/** Makes a {@link closedFolder}. */
function linkSessions(folder: string, home: string): void {
  makeFolder(folder);
  // The runtime does not make the folder of sessions through a link.
  makeFolder(join(home, "session-state"));
  unlessThere(() => symlinkSync(join("..", basename(home), "session-state"), join(folder, "session-state")));
}

function commandLine({ server, port, githubToken, settings: { args } }: Launch): string[] {
  return [
    "--headless",
    ...["--host", server.address],
    ...["--port", String(port)],
    "--no-auto-login",
    "--no-auto-update",
    ...(githubToken === null ? [] : ["--auth-token-env", GITHUB_TOKEN_VARIABLE]),
    ...args,
  ];
}

/** Resolves with the server's version, or null if it did not answer. */
async function firstAnswer(launch: Launch, signal: AbortSignal): Promise<string | null> {
  try {
    return await probe({ address: launch.server.address, port: launch.port, token: launch.connectionToken }, signal);
  } catch (error) {
    if (isFleetError(error, "FLEET_SERVER_UNREACHABLE") && !(error.cause instanceof RpcError)) return null;
    throw error;
  }
}

function openLog(path: string, access: number): number {
  return writing(path, () => openSync(path, access | modes.O_CREAT | modes.O_APPEND | modes.O_NOFOLLOW, 0o600));
}

function cannotStart(launch: Launch, cause: unknown): FleetError {
  const code = systemCode(cause);
  const out = code === "EAGAIN" || code === "EMFILE" || code === "ENFILE" || code === "ENOMEM";
  const reason = cause instanceof Error ? cause.message : String(cause);
  const why = out ? `this machine has no processes, file descriptors or memory left (${code})` : reason;
  return new FleetError("FLEET_RUNTIME_UNUSABLE", `${launch.runtimePath} could not be started: ${why}.`, {
    cause,
    suggestions: out ? ["copilotfleet ps", "ulimit -n -u"] : ["copilotfleet doctor"],
  });
}

function exited(home: string, logStart: number, how: string): Error {
  const words = lastWords(home, logStart);
  if (/address already in use/i.test(words)) return new PortTakenError(words);
  const said = words === "" ? "It printed nothing." : `Its output: ${words}`;
  return new FleetError("FLEET_SERVER_EXITED", `The runtime ended at once (${how}). ${said}`, {
    suggestions: ["copilotfleet doctor"],
  });
}

function announced(home: string, logStart: number): boolean {
  return ANNOUNCEMENT.test(lastWords(home, logStart));
}

function startTimeout(launch: Launch, signal: AbortSignal): FleetError {
  return new FleetError("FLEET_SERVER_START_TIMEOUT", `The server on port ${launch.port} did not answer in time.`, {
    cause: signal.reason,
    suggestions: [`Give it longer with ${option("wait", "60s")}.`],
  });
}

/**
 * The variable that passes the GitHub token to a server. The command line contains only the variable's name
 * (`--auth-token-env`). The runtime removes this variable from the environment of tools and MCP servers, but does not
 * remove other variables (measured with 1.0.85).
 */
const GITHUB_TOKEN_VARIABLE = "COPILOT_GITHUB_TOKEN";

const CONNECTION_TOKEN_VARIABLE = "COPILOT_CONNECTION_TOKEN";

/** The variables that only the runtime itself needs, and only while it starts. */
const SECRET_VARIABLES = [GITHUB_TOKEN_VARIABLE, CONNECTION_TOKEN_VARIABLE] as const;

/** The variables that every server gets from the caller's environment. Some of them are replaced or removed below. */
const ALLOWED = `PATH LANG LANGUAGE LC_ALL LC_CTYPE LC_MESSAGES TZ TMPDIR SHELL USER LOGNAME SSL_CERT_FILE SSL_CERT_DIR
  NODE_EXTRA_CA_CERTS COPILOT_OFFLINE COPILOT_API_URL COPILOT_DEBUG_GITHUB_API_URL`.split(/\s+/);

/**
 * With `COPILOT_OFFLINE` set, the full CLI (1.0.102) exits unless its environment also names a provider and a model. It
 * never uses these two values, because the fleet sends the real provider with each session.
 */
const OFFLINE_PROVIDER = { COPILOT_PROVIDER_BASE_URL: "http://127.0.0.1:9/v1", COPILOT_MODEL: "none" };

/**
 * A folder beside the home, which the server can read in its sandbox and cannot change. It contains a link to the
 * sessions in the home. The runtime (1.0.85) needs to write nothing else into its `COPILOT_HOME`.
 */
export function closedFolder(home: string): string {
  return join(dirname(home), "copilot");
}

/** One start of a server. */
export interface Launch {
  server: Pick<ServerRecord, "address" | "home" | "cwd">;
  launchId: string;
  runtimePath: string;
  port: number;
  connectionToken: string;
  githubToken: string | null;
  settings: Config["runtime"];
  stateRoot: string;
  sandbox: Sandbox;
  /**
   * The server's `COPILOT_HOME`. The runtime starts the MCP servers and hooks that files there name, without asking. So
   * unless clients may start programs, this is not the home, but a {@link closedFolder}.
   */
  copilotHome: string;
  /** The folder outside the server's home that contains its sessions; null if they are in the home. */
  sessionState: string | null;
  /** The caller's environment. A server gets only a part of it. */
  env: NodeJS.ProcessEnv;
}

/**
 * The folder for the temporary files of a server in a sandbox, because such a server cannot use the system's shared
 * folder. It is beside the home, so that the server cannot remove it.
 */
export function temporaryFolder(home: string): string {
  return join(dirname(home), "tmp");
}

/**
 * The complete environment of a server. `HOME` is the server's home, so that tools do not use the operator's files. To
 * give servers the operator's `HOME`, list `HOME` in `runtime.env`.
 */
export function serverEnvironment(launch: Launch): Record<string, string> {
  const { server, launchId, connectionToken, githubToken, settings, stateRoot, sandbox, copilotHome, env } = launch;
  const environment: Record<string, string> = { HOME: server.home };
  for (const name of [...ALLOWED, ...settings.env]) {
    const value = env[name];
    if (value !== undefined) environment[name] = value;
  }
  if ((environment.COPILOT_OFFLINE ?? "") !== "") {
    for (const [name, value] of Object.entries(OFFLINE_PROVIDER)) environment[name] ??= value;
  }
  if (sandbox.network === undefined) excludeLoopback(environment);
  else restrictProxies(environment, sandbox.network);
  environment.COPILOT_HOME = copilotHome;
  if (sandbox.mode !== "none") environment.TMPDIR = temporaryFolder(server.home);
  environment[CONNECTION_TOKEN_VARIABLE] = connectionToken;
  environment[LAUNCH_VARIABLE] = launchId;
  environment[FLEET_VARIABLE] = stateRoot;
  if (githubToken !== null) environment[GITHUB_TOKEN_VARIABLE] = githubToken;
  const library = noDelayLibrary();
  if (library !== null) environment.LD_PRELOAD ??= library; // `runtime.env` may name the operator's own
  return environment;
}

/**
 * Keeps requests to this machine away from proxies, because the echo model and the model gateway listen on this
 * machine. Otherwise the runtime (1.0.85) would send even these requests through a proxy. It would even send plain HTTP
 * requests through the proxy for HTTPS. If both `no_proxy` and `NO_PROXY` are set, the runtime reads only `no_proxy`.
 */
function excludeLoopback(environment: Record<string, string>): void {
  if (!Object.keys(environment).some((name) => /^https?_proxy$/i.test(name))) return;
  const name = environment.no_proxy === undefined ? "NO_PROXY" : "no_proxy";
  const given = environment[name] ?? "";
  environment[name] = given === "" ? LOOPBACK : `${given},${LOOPBACK}`;
}

const LOOPBACK = "127.0.0.1";

/**
 * Removes the caller's proxies, because a server in a network namespace cannot reach them. Sets the fleet's proxy for
 * the allowed hosts instead, if the network has an allow-list.
 */
function restrictProxies(environment: Record<string, string>, network: RestrictedNetwork): void {
  for (const name of Object.keys(environment)) if (/^(https?|all|no)_proxy$/i.test(name)) delete environment[name];
  if (network !== "allow-list") return;
  for (const [name, value] of Object.entries(TO_EGRESS)) environment[name] = environment[name.toUpperCase()] = value;
  environment.NODE_USE_ENV_PROXY = "1"; // Node.js 22.21 and 24.5 or newer
}

const EGRESS = `http://${EGRESS_ADDRESS}:${WAY_OUT_PORT}`;
const TO_EGRESS = {
  http_proxy: EGRESS,
  https_proxy: EGRESS,
  no_proxy: [LOOPBACK, "localhost", "::1", GATEWAY_END].join(","),
};

/** Why no program accepts connections at the address, or null if one does. Sends no data. */
export function connectProblem(address: { host: string; port: number }, timeoutMs: number): Promise<string | null> {
  return new Promise((resolve) => {
    const socket = connect(address);
    const settle = (problem: string | null) => {
      socket.destroy();
      resolve(problem);
    };
    // This timer limits the name lookup, too.
    const timer = setTimeout(() => settle(`no answer within ${timeoutMs / 1_000} s`), timeoutMs);
    socket.once("close", () => clearTimeout(timer));
    socket.once("connect", () => settle(null));
    socket.once("error", (error) => settle(reachProblem(error)));
  });
}

/** The reason in the error of a connection that failed. */
export function reachProblem(error: unknown): string {
  return REASONS[systemCode(error) ?? ""] ?? (error instanceof Error ? error.message : String(error));
}

const REASONS: Readonly<Record<string, string>> = {
  ECONNREFUSED: "connection refused",
  EHOSTUNREACH: "no route to the host",
  ENETUNREACH: "no route to the network",
  ENOTFOUND: "the name of the host is unknown",
  EAI_AGAIN: "the name of the host cannot be looked up",
};

const CODES = new Set("EMFILE ENFILE EAGAIN ENOBUFS ENOMEM EADDRNOTAVAIL ENOSPC EDQUOT EROFS".split(" "));

/**
 * Searches an error and its causes for a system error that shows a limit of this process, its user or its machine.
 * Returns the code of that system error, or undefined if there is none.
 */
export function ownLimit(error: unknown): string | undefined {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    const code = systemCode(cause);
    if (code !== undefined && CODES.has(code)) return code;
  }
  return undefined;
}

import { type ChildProcess, type StdioOptions, spawn } from "node:child_process";
import { closeSync, fstatSync, mkdirSync, constants as modes, openSync, symlinkSync } from "node:fs";
import { basename, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { FleetError, isFleetError, option, systemCode } from "../../errors.js";
import type { ProcessIdentity } from "../../model/process.js";
import type { Command } from "../../sandbox/sandbox.js";
import { system } from "../../system/system.js";
import { makeFolder } from "../files/if-there.js";
import { makeLogKey, readLogKey } from "../files/log-signature.js";
import { logPath, unwritable } from "../files/server-folder.js";
import { appendLine, appendToLog, lastWords, launchText } from "../files/server-log.js";
import { withBridge } from "../process/bridge.js";
import { markOf } from "../process/launches.js";
import { probe } from "../process/probe.js";
import { asServer, endInBwrap, identify, isAlive, processesOfSession } from "../process/process-table.js";
import { noteEnd } from "../process/server-end.js";
import { sendSignal } from "../process/stop.js";
import { RpcError } from "../wire/rpc-client.js";
import {
  GITHUB_TOKEN_VARIABLE,
  type Launch,
  SECRET_VARIABLES,
  serverEnvironment,
  temporaryFolder,
} from "./environment.js";

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
function endOf(child: ChildProcess): Promise<{ code: number | null; signal: NodeJS.Signals | null }> {
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("exit", (code, signal) => resolve({ code, signal }));
  });
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
  for (const make of [
    // The runtime does not make the folder of sessions through a link.
    () => mkdirSync(join(home, "session-state"), { mode: 0o700 }),
    () => symlinkSync(join("..", basename(home), "session-state"), join(folder, "session-state")),
  ]) {
    try {
      make();
    } catch (error) {
      if (systemCode(error) !== "EEXIST") throw error; // an earlier start made it
    }
  }
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
  try {
    return openSync(path, access | modes.O_CREAT | modes.O_APPEND | modes.O_NOFOLLOW, 0o600);
  } catch (cause) {
    throw unwritable(path, cause);
  }
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

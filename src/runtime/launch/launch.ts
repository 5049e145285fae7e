import { closeSync, constants, fstatSync, openSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { FleetError, isFleetError, option, systemCode } from "../../errors.js";
import type { ProcessIdentity } from "../../model/process.js";
import { logPath, unwritable } from "../files/server-folder.js";
import { lastWords } from "../files/server-log.js";
import { probe } from "../process/probe.js";
import { identify } from "../process/process-table.js";
import { noteEnd } from "../process/server-end.js";
import { ownsListener } from "../process/sockets.js";
import { sendSignal } from "../process/stop.js";
import { RpcError } from "../wire/rpc-client.js";

export interface LaunchOptions {
  launchId: string;
  runtimePath: string;
  /** Options for the program in addition to those that the fleet sets itself. */
  args: readonly string[];
  address: string;
  port: number;
  home: string;
  cwd: string;
  environment: Record<string, string>;
  connectionToken: string;
  /** The name (never the value) of the variable in `environment` that holds a GitHub token, or null. */
  tokenVariable: string | null;
  /** Seconds of idleness after which the runtime unloads a session, or null for its default (never). */
  idleTimeoutSeconds: number | null;
}

export interface LaunchedServer {
  identity: ProcessIdentity;
  version: string;
}

/** The runtime could not listen because another process holds the port. Another port may work. */
export class PortTakenError extends Error {
  override readonly name = "PortTakenError";
}

const POLL_MS = 4;
/**
 * A look at the kernel's table of sockets takes a millisecond, so we wait until the runtime has announced that it listens.
 * For a runtime without that announcement, we look once in this many polls.
 */
const UNANNOUNCED_POLLS = 25;
const ANNOUNCEMENT = /listening on port/i;

/**
 * Starts one server, detached so that it outlives this process. Waits until it answers an authenticated ping, but ends the
 * wait when it exits or the signal aborts. After a failure, nothing of it is left running.
 *
 * It sends the token only after the kernel has shown that the new process itself holds the listening socket.
 *
 * @throws FleetError `FLEET_SERVER_EXITED` with the end of the runtime's output, `FLEET_SERVER_START_TIMEOUT` when the
 * signal aborts, `FLEET_RUNTIME_UNUSABLE` when the program cannot be started, `FLEET_RUNTIME_TOO_OLD` or
 * `FLEET_RUNTIME_TOO_NEW` when it speaks another protocol version, `FLEET_STATE_UNWRITABLE` when its log cannot be opened;
 * or {@link PortTakenError}.
 */
export async function launchServer(options: LaunchOptions, signal: AbortSignal): Promise<LaunchedServer> {
  const { child, logStart } = await start(options);
  let ended: string | null = null;
  const exit = child.then((result) => {
    const how = result.signal === undefined ? `exit code ${result.exitCode}` : result.signal;
    ended = result.exitCode === undefined && result.signal === undefined ? (result.shortMessage ?? "not started") : how;
    return result;
  });

  const { pid } = child;
  if (pid === undefined) {
    const { cause, shortMessage } = await exit;
    throw cannotStart(options, cause, shortMessage);
  }
  const identity = identify(pid);
  try {
    for (let poll = 0; ; poll++) {
      if (identity === null || ended !== null) {
        await exit;
        throw exited(options.home, logStart, ended ?? "an unknown reason");
      }
      if (signal.aborted) throw startTimeout(options, signal);
      const due = poll % UNANNOUNCED_POLLS === UNANNOUNCED_POLLS - 1 || announced(options.home, logStart);
      if (due && ownsListener(pid, options.port)) {
        const version = await Promise.race([firstAnswer(options, signal), exit.then(() => null)]);
        if (version !== null) {
          // Unref the child only now, because this process must stay alive while it waits for a failed start to end.
          child.unref();
          void exit.then(({ signal: by = null, exitCode = null }) => {
            noteEnd(options.home, options.launchId, { signal: by, code: exitCode });
          });
          return { identity, version };
        }
      }
      await Promise.race([delay(POLL_MS), exit]);
    }
  } catch (error) {
    if (ended === null) {
      // It leads its own process group, which this process created, so its identity needs no check.
      sendSignal(-pid, "SIGKILL");
      await exit;
    }
    throw error;
  }
}

async function start(options: LaunchOptions) {
  const { execa } = await import("execa");
  const log = openLog(options.home);
  try {
    const logStart = fstatSync(log).size;
    const output = log as 1; // execa accepts any open descriptor, but its types know only 1 and 2
    requireDescriptors(options);
    const child = execa(options.runtimePath, commandLine(options), {
      cwd: options.cwd,
      env: options.environment,
      extendEnv: false,
      detached: true,
      cleanup: false,
      reject: false,
      buffer: false,
      stdio: ["ignore", output, output],
    });
    return { child, logStart };
  } finally {
    closeSync(log);
  }
}

/**
 * Checks for the two file descriptors that it takes to start a process. Without them, execa (9.6) throws a TypeError. The
 * child that it abandons then emits an error that nobody can listen to, which ends this process.
 */
function requireDescriptors(options: LaunchOptions): void {
  const spare: number[] = [];
  try {
    while (spare.length < 2) spare.push(openSync("/dev/null", "r"));
  } catch (cause) {
    throw cannotStart(options, cause);
  } finally {
    for (const fd of spare) closeSync(fd);
  }
}

function commandLine(options: LaunchOptions): string[] {
  return [
    "--headless",
    "--host",
    options.address,
    "--port",
    String(options.port),
    "--no-auto-login",
    "--no-auto-update",
    ...(options.tokenVariable === null ? [] : ["--auth-token-env", options.tokenVariable]),
    ...(options.idleTimeoutSeconds === null ? [] : ["--session-idle-timeout", String(options.idleTimeoutSeconds)]),
    ...options.args,
  ];
}

/** Resolves with the server's version, or with null if it did not answer. Its exit or the signal then explains why. */
async function firstAnswer(options: LaunchOptions, signal: AbortSignal): Promise<string | null> {
  try {
    return await probe({ address: options.address, port: options.port, token: options.connectionToken }, signal);
  } catch (error) {
    if (isFleetError(error, "FLEET_SERVER_UNREACHABLE") && !(error.cause instanceof RpcError)) return null;
    throw error;
  }
}

function openLog(home: string): number {
  const path = logPath(home);
  try {
    return openSync(path, constants.O_CREAT | constants.O_APPEND | constants.O_RDWR | constants.O_NOFOLLOW, 0o600);
  } catch (cause) {
    throw unwritable(path, cause);
  }
}

function cannotStart(options: LaunchOptions, cause: unknown, reason?: string): FleetError {
  const code = systemCode(cause);
  const out = code === "EAGAIN" || code === "EMFILE" || code === "ENFILE" || code === "ENOMEM";
  const why = out ? `this machine has no processes, file descriptors or memory left (${code})` : reason;
  return new FleetError("FLEET_RUNTIME_UNUSABLE", `${options.runtimePath} could not be started: ${why}.`, {
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

function startTimeout(options: LaunchOptions, signal: AbortSignal): FleetError {
  return new FleetError("FLEET_SERVER_START_TIMEOUT", `The server on port ${options.port} did not answer in time.`, {
    cause: signal.reason,
    suggestions: [`Give it longer: ${option("wait", "60s")}`],
  });
}

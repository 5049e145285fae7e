import { setFlagsFromString } from "node:v8";
import { ERRORS, FleetError } from "../../base/errors.js";
import { countOf } from "../../base/values/text.js";
import { ignoredVariables } from "../../config/load/environment.js";
import type { Fleet } from "../../fleet/fleet.js";
import type { InheritedListener } from "../../runtime/launch/listen.js";
import type { ServeLog } from "../../serve/context.js";
import type { Stopped } from "../../servers/stop.js";
import { Interrupted, onSignals } from "../prompt.js";
import { exitCodeOf } from "../render/results.js";

export interface ServeOptions {
  drainTimeoutMs: number;
  leaveRunning: boolean;
  ready: (line: string) => void;
}

export interface Served {
  leftRunning: boolean;
  stopped: Stopped[];
  /** Servers that could not be stopped. */
  failed: { id: string; message: string }[];
}

/** Supervises until a signal arrives. Then drains the servers, or leaves them running. */
export async function runServe(fleet: Fleet, options: ServeOptions): Promise<Served> {
  preferSmallHeap();
  const log = await openServeLog();
  const ignored = ignoredVariables(process.env);
  if (ignored !== null) log("warn", ignored);
  // The first signal ends the supervision, and a second signal cuts the drain short.
  const [first, second] = [new AbortController(), new AbortController()];
  let signalName: NodeJS.Signals | undefined;
  using _ = onSignals(["SIGTERM", "SIGINT"], (name) => {
    if (signalName !== undefined) return second.abort();
    signalName = name;
    first.abort(new Error(`the process received ${name}`));
  });
  const inherited = inheritedListeners(process.env, process.pid);
  const supervisor = await fleet.pool.supervise({ log, signal: first.signal, ...inherited }).catch((error: unknown) => {
    // A signal during the start ends the command at once, because there is nothing to drain.
    throw signalName === undefined ? error : new Interrupted(signalName);
  });
  const { watched, metricsAddress, doorAddress, httpUrl } = supervisor;
  const api = httpUrl === null ? {} : { http: httpUrl };
  log("info", "serving", { servers: watched, metrics: metricsAddress, door: doorAddress, ...api });
  const door = doorAddress === null ? "" : ` Front door: ${doorAddress}.`;
  const http = httpUrl === null ? "" : ` HTTP API: ${httpUrl}.`;
  options.ready(
    `Supervising ${countOf(watched, "server")}.${door}${http} Metrics and health: http://${metricsAddress}/metrics`,
  );
  await Promise.race([aborted(first.signal), aborted(supervisor.lost)]);
  if (supervisor.lost.aborted) {
    await supervisor.leave();
    throw new FleetError("FLEET_SUPERVISOR_RUNNING", "Another supervisor took over while this one was suspended.", {
      suggestions: ["copilotfleet ps"],
    });
  }
  log("info", options.leaveRunning ? "leaving the servers to the next supervisor" : "draining", {
    signal: signalName,
  });
  if (options.leaveRunning) {
    await supervisor.leave({ doorTimeout: options.drainTimeoutMs });
    return { leftRunning: true, stopped: [], failed: [] };
  }
  const { stopped, failed } = await supervisor.drain({ drainTimeout: options.drainTimeoutMs, hurry: second.signal });
  log("info", "drained", { servers: stopped.length, cut: stopped.flatMap(({ cut }) => cut) });
  return {
    leftRunning: false,
    stopped,
    failed: failed.map(({ id, error }) => ({ id, message: error instanceof Error ? error.message : String(error) })),
  };
}

/**
 * Makes V8 compact the heap on every full garbage collection. Without this, garbage accumulates for days while 50
 * servers are idle. V8 reads the flag at each collection, so setting it after the start of the process is enough. Do
 * not add --optimize-for-size: it makes JSON.parse slow for long text, so that one large message blocks the front door.
 */
function preferSmallHeap(): void {
  setFlagsFromString("--compact-on-every-full-gc");
}

/** The first file descriptor of a socket that systemd opened (sd_listen_fds(3)). */
const FIRST_LISTENER = 3;

/** The sockets that systemd opened for this process. */
export function inheritedListeners(
  { LISTEN_FDS, LISTEN_FDNAMES = "", LISTEN_PID }: NodeJS.ProcessEnv,
  pid: number,
): { listen?: InheritedListener; http?: InheritedListener } {
  if (LISTEN_PID !== String(pid)) return {};
  const names = LISTEN_FDNAMES.split(":");
  const sockets = Array.from({ length: Number(LISTEN_FDS) || 0 }, (_, index) => ({
    fd: FIRST_LISTENER + index,
    isHttp: names[index] === "http",
  }));
  const [http, listen] = [true, false].map((wanted) => sockets.find(({ isHttp }) => isHttp === wanted));
  return {
    ...(listen === undefined ? {} : { listen: { fd: listen.fd } }),
    ...(http === undefined ? {} : { http: { fd: http.fd } }),
  };
}

/** The exit code for a cut turn. If no turn was cut, that for a server that could not be stopped; otherwise 0. */
export function exitCodeOfServe({ stopped, failed }: Served): number {
  const cut = exitCodeOf(stopped);
  return cut === 0 && failed.length > 0 ? ERRORS.FLEET_SERVER_LOST.exit : cut;
}

async function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return;
  await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
}

/**
 * Opens the log of `serve` on standard error: one JSON object per line, as pino writes it, or plain lines on a
 * terminal. A closed standard error does not end `serve`.
 */
async function openServeLog(): Promise<ServeLog> {
  process.stderr.on("error", () => undefined);
  if (process.stderr.isTTY) {
    return (level, message, fields = {}) => {
      const shown = Object.entries(fields).map(([name, value]) => ` ${name}=${JSON.stringify(value)}`);
      process.stderr.write(`${new Date().toISOString()} ${level.padEnd(5)} ${message}${shown.join("")}\n`);
    };
  }
  const { default: pino } = await import("pino");
  const logger = pino(
    {
      base: { pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    process.stderr,
  );
  return (level, message, fields = {}) => logger[level]({ ...fields }, message);
}

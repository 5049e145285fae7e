import { setTimeout as delay } from "node:timers/promises";
import { deadline } from "../base/clock.js";
import { isFleetError } from "../base/errors.js";
import type { ServerRecord } from "../base/server.js";
import { system } from "../base/system/system.js";
import { logPath, readConnectionToken } from "../runtime/files/server-folder.js";
import { appendToLog } from "../runtime/files/server-log.js";
import { probe, withBridge } from "../runtime/process/probe.js";
import { asServer, isAlive, processesOfLaunch, writersOf } from "../runtime/process/process-table.js";
import { logEnd, logStop, stopServer, UNFINISHED } from "../runtime/process/stop.js";
import type { Store } from "../store/ports.js";
import { changeClaimed, type Leftover, recordEnd, recordReady } from "./claims.js";

const BUSY_POLL_MS = 20;
const ADOPT_WAIT_MS = 5_000;

/**
 * Adopts a server after the command that was starting it has died. If the server's process does not answer, ends all of its
 * processes, records the server as failed and resolves with null. The caller holds the claim.
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
 * The version that the process on this port reports. Null if the process does not answer, or if the file with the server's
 * connection token is gone.
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

import type { ProcessIdentity } from "../../model/process.js";
import type { SandboxReport } from "../../model/sandbox.js";
import { system } from "../../system/system.js";
import { identify, processesOfSession } from "./process-table.js";

/*
 * A server with a restricted network listens in a network namespace of its own. Its bridge listens on the same port of the
 * machine, and passes connections on. So two processes together show that a connection reaches the server.
 */

/**
 * The identity of a server with its bridge. Null if nothing listens on the port of the machine that belongs to the server's
 * process session, which no process can join from outside. A server with an open network needs no bridge.
 */
export function withBridge(
  server: ProcessIdentity,
  { port, sandbox }: { port: number; sandbox: SandboxReport | undefined },
): ProcessIdentity | null {
  if (sandbox?.network === undefined) return server;
  // Before its program makes the namespace, a process holds the listening socket of its later bridge.
  if (listensHere(server.pid, port)) return null;
  const bridge = processesOfSession(server).find(({ pid }) => pid !== server.pid && listensHere(pid, port));
  return bridge === undefined ? null : { ...server, bridge: { pid: bridge.pid, startTicks: bridge.startTicks } };
}

/** Whether the kernel shows that connections to a port of this machine reach the recorded process of a server, and nobody else. */
export function hasPort(
  { pid, bridge }: ProcessIdentity,
  { port, sandbox }: { port: number; sandbox?: SandboxReport | undefined },
): boolean {
  if (!system().processes.listensOn(pid, port)) return false;
  if (bridge === undefined) return sandbox?.network === undefined;
  return identify(bridge.pid)?.startTicks === bridge.startTicks && listensHere(bridge.pid, port);
}

function listensHere(pid: number, port: number): boolean {
  return system().processes.listensOn(pid, port, process.pid);
}

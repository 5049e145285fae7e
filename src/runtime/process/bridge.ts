import type { ProcessIdentity } from "../../model/process.js";
import type { SandboxReport } from "../../model/sandbox.js";
import { system } from "../../system/system.js";
import { identify, processesOfSession } from "./process-table.js";

/*
 * A server with a restricted network listens in its own network namespace. Its bridge listens on the same port of the
 * machine, and forwards connections to the server. So only a check of both processes proves that a connection reaches
 * the server.
 */

/**
 * Adds the identity of a server's bridge to the identity of the server. Null if no bridge listens so far. A server with
 * an open network has no bridge, so its identity is returned unchanged. The bridge is the process in the server's
 * process session that listens on the port of this machine. No process can join that session from outside.
 */
export function withBridge(
  server: ProcessIdentity,
  { port, sandbox }: { port: number; sandbox: SandboxReport | undefined },
): ProcessIdentity | null {
  if (sandbox?.network === undefined) return server;
  // Before the server is in its namespace, its own process listens on this machine, with the socket that its bridge has
  // later.
  if (listensHere(server.pid, port)) return null;
  const bridge = processesOfSession(server).find(({ pid }) => pid !== server.pid && listensHere(pid, port));
  return bridge === undefined ? null : { ...server, bridge: { pid: bridge.pid, startTicks: bridge.startTicks } };
}

/**
 * Whether the kernel shows that connections to a port of this machine reach the recorded process of a server, and no
 * other process.
 */
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

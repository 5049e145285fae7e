import { FleetError } from "../../base/errors.js";
import type { SandboxReport } from "../../base/sandbox.js";
import type { ProcessIdentity, ServerRecord } from "../../base/server.js";
import { system } from "../../base/system/system.js";
import { RawConnection } from "../client/raw-connection.js";
import { readConnectionToken } from "../files/server-folder.js";
import { showAddress } from "../launch/listen.js";
import { checkRuntimeVersion } from "../launch/versions.js";
import type { Endpoint } from "../wire/rpc-client.js";
import { identify, isAlive, processesOfSession } from "./process-table.js";

/**
 * The endpoint of a server. Throws unless the kernel shows that connections to the server's port reach the recorded
 * process itself.
 */
export function provenEndpoint(server: ServerRecord): Endpoint {
  const { process: identity, port } = server;
  if (identity === null || port === null || !isAlive(identity)) {
    throw new FleetError("FLEET_SERVER_LOST", `Server ${server.id} is not running.`, {
      suggestions:
        server.user === null ? [`copilotfleet restart ${server.id}`] : [`copilotfleet spawn --user ${server.user}`],
    });
  }
  if (!hasPort(identity, { port, sandbox: server.sandbox })) {
    throw new FleetError(
      "FLEET_SERVER_LOST",
      `Process ${identity.pid} of server ${server.id} does not listen on ${port}.`,
      { suggestions: [`copilotfleet restart ${server.id}`] },
    );
  }
  return { address: server.address, port, token: readConnectionToken(server.home), noDelay: server.noDelay === true };
}

/**
 * Pings a server. A connection alone proves nothing, because the kernel accepts connections even for a process that
 * hangs. Resolves with the server's version.
 *
 * @throws FleetError `FLEET_RUNTIME_UNUSABLE`, also for a version before `OLDEST_RUNTIME`
 */
export async function probe(endpoint: Endpoint, signal: AbortSignal): Promise<string> {
  await using connection = await RawConnection.open(endpoint, signal);
  checkRuntimeVersion(showAddress({ host: endpoint.address, port: endpoint.port }), connection.version);
  await connection.request("ping", { message: "probe" });
  return connection.version;
}

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

import { FleetError } from "../../errors.js";
import type { ServerRecord } from "../../model/server.js";
import { RawConnection } from "../client/raw-connection.js";
import { readConnectionToken } from "../files/server-folder.js";
import { showAddress } from "../launch/listen.js";
import { checkRuntimeVersion } from "../launch/protocol.js";
import type { Endpoint } from "../wire/rpc-client.js";
import { hasPort } from "./bridge.js";
import { isAlive } from "./process-table.js";

/**
 * The endpoint of a server. Throws unless the kernel shows that connections to the server's port reach the recorded process
 * itself.
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
  return { address: server.address, port, token: readConnectionToken(server.home) };
}

/**
 * Pings a server. A connection alone proves nothing, because the kernel accepts connections even for a process that
 * hangs. Resolves with the server's version.
 *
 * @throws FleetError `FLEET_RUNTIME_TOO_OLD`, also for a version before `OLDEST_RUNTIME`
 */
export async function probe(endpoint: Endpoint, signal: AbortSignal): Promise<string> {
  await using connection = await RawConnection.open(endpoint, signal);
  checkRuntimeVersion(showAddress({ host: endpoint.address, port: endpoint.port }), connection.version);
  await connection.request("ping", { message: "probe" });
  return connection.version;
}

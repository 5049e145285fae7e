import { FleetError } from "../errors.js";
import type { ServerRecord } from "../store/store.js";
import { type Endpoint, RawConnection } from "./client/raw-connection.js";
import { isAlive, ownsListener } from "./process-table.js";
import { readConnectionToken } from "./server-folder.js";

/**
 * Proves that the recorded process still runs and itself holds the listening socket, then hands out what is needed to
 * connect. The one way to a token: a stranger that took the port never sees it.
 *
 * @throws FleetError `FLEET_SERVER_LOST` when the proof fails.
 */
export function provenEndpoint(server: ServerRecord): Endpoint {
  const { process: identity, port } = server;
  if (identity === null || port === null || !isAlive(identity)) {
    throw new FleetError("FLEET_SERVER_LOST", `Server ${server.id} is not running.`, {
      suggestions:
        server.user === null ? [`copilotfleet restart ${server.id}`] : [`copilotfleet spawn --user ${server.user}`],
    });
  }
  if (!ownsListener(identity.pid, port)) {
    throw new FleetError(
      "FLEET_SERVER_LOST",
      `Process ${identity.pid} of server ${server.id} does not listen on ${port}.`,
    );
  }
  return { address: server.address, port, token: readConnectionToken(server.home) };
}

/**
 * An authenticated ping with a deadline: the only proof of health (a stopped process still accepts connections).
 * Resolves with the version the server gives.
 *
 * @throws FleetError `FLEET_SERVER_UNREACHABLE`, `FLEET_RUNTIME_TOO_OLD`, `FLEET_RUNTIME_TOO_NEW`.
 */
export async function probe(endpoint: Endpoint, signal: AbortSignal): Promise<string> {
  await using connection = await RawConnection.open(endpoint, signal);
  await connection.request("ping", { message: "probe" });
  return connection.version;
}

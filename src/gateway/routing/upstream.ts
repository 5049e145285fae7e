import { FleetError } from "../../errors.js";
import { type Endpoint, RpcClient, type RpcDial } from "../../runtime/wire/rpc-client.js";
import { serverProtocol } from "../policy/protocols.js";
import type { OpenUpstream } from "../state/links.js";

/**
 * Opens one client's connection to a server or to another front door.
 *
 * @param endpoint a server whose identity was proved, with the server's connection token; or a front door, with the client's
 * token
 * @param dial how to connect. Its `hello` has the parameters of the client's own `connect`, without the client's token
 * @throws FleetError `FLEET_SERVER_UNREACHABLE`, `FLEET_RUNTIME_TOO_OLD`, `FLEET_RUNTIME_TOO_NEW`.
 */
export async function openUpstream(endpoint: Endpoint, dial: RpcDial, signal: AbortSignal): Promise<OpenUpstream> {
  const where = `${endpoint.address}:${endpoint.port}`;
  const { client, greeting } = await RpcClient.dial(endpoint, dial, signal).catch((cause: unknown): never => {
    const message = `The server at ${where} cannot be reached, or takes no more connections.`;
    throw new FleetError("FLEET_SERVER_UNREACHABLE", message, { cause });
  });
  try {
    return { upstream: client, greeting, protocol: serverProtocol(where, greeting.protocolVersion) };
  } catch (error) {
    client.destroy();
    throw error;
  }
}

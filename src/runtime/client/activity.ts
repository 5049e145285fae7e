import { RpcError } from "../wire/rpc-client.js";

/**
 * Whether a session is in a turn, as its server reports. Null if the server does not have the session in memory, so that it
 * is not in a turn either.
 *
 * @param request sends a request to the server
 * @throws as `request`, except for an error that the server answers
 */
export async function isInTurn(
  request: (method: string, params: object) => Promise<unknown>,
  sessionId: string,
): Promise<boolean | null> {
  try {
    const activity = await request("session.metadata.activity", { sessionId });
    return (activity as { hasActiveWork?: unknown }).hasActiveWork === true;
  } catch (error) {
    if (error instanceof RpcError) return null;
    throw error;
  }
}

import { RpcError } from "../wire/rpc-client.js";

/** Whether a session is in a turn, as its server reports. Null if the server does not have it in memory. */
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

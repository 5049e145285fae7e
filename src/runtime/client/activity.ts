import { RpcError } from "../wire/rpc-client.js";
import type { RawConnection } from "./raw-connection.js";

/** Whether a session is in a turn, as its server reports. Null if the server does not have the session in memory. */
export async function isInTurn(
  connection: Pick<RawConnection, "request">,
  sessionId: string,
  signal?: AbortSignal,
): Promise<boolean | null> {
  const activity = await unlessRefused(connection.request("session.metadata.activity", { sessionId }, signal));
  return activity === null ? null : (activity as { hasActiveWork?: unknown }).hasActiveWork === true;
}

/**
 * The server's answer. Null if the server answers with an error, for example because it does not have the session in memory.
 */
export async function unlessRefused(answer: Promise<unknown>): Promise<unknown> {
  return await answer.catch((error: unknown) => {
    if (error instanceof RpcError) return null;
    throw error;
  });
}

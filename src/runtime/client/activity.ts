import { RpcError } from "../wire/rpc-client.js";

/** Whether a session is in a turn, as its server reports. Null if the server does not have it in memory. */
export async function isInTurn(
  request: (method: string, params: object) => Promise<unknown>,
  sessionId: string,
): Promise<boolean | null> {
  const activity = await unlessRefused(request("session.metadata.activity", { sessionId }));
  return activity === null ? null : (activity as { hasActiveWork?: unknown }).hasActiveWork === true;
}

/** The server's answer. Null if it answers with an error, as it does when it does not have the session in memory. */
export async function unlessRefused(answer: Promise<unknown>): Promise<unknown> {
  return await answer.catch((error: unknown) => {
    if (error instanceof RpcError) return null;
    throw error;
  });
}

import type { ServerRecord } from "../../model/server.js";
import { RawConnection } from "../../runtime/client/raw-connection.js";
import { provenEndpoint } from "../../runtime/process/probe.js";
import { RpcError } from "../../runtime/wire/rpc-client.js";

/**
 * Unloads sessions from a running server's memory at once, even if they are in use or contain unsaved changes, because
 * they belong to another host by now. Skips sessions that are not in its memory.
 *
 * @param answerMs how long the server may take, in milliseconds
 */
export async function unloadAtOnce(server: ServerRecord, ids: readonly string[], answerMs: number): Promise<void> {
  if (ids.length === 0) return;
  await using connection = await RawConnection.open(provenEndpoint(server), AbortSignal.timeout(answerMs));
  for (const sessionId of ids) {
    try {
      await connection.request("sessions.close", { sessionId });
    } catch (error) {
      // Either the session was not in memory, or the server unloaded it without saving, which is intended here.
      if (!(error instanceof RpcError)) throw error;
    }
  }
}

import { RawConnection, RpcError } from "../runtime/client/raw-connection.js";
import { provenEndpoint } from "../runtime/probe.js";
import type { ServerRecord } from "../store/store.js";

/**
 * Unloads sessions from a running server's memory at once, whoever uses them and whatever is in them: for what is another
 * host's by now. One that is not in its memory is passed over.
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
      // Not in its memory; or unloaded all the same, and what it could not write is dropped: that is what this is for.
      if (!(error instanceof RpcError)) throw error;
    }
  }
}

import type { ServerRecord } from "../../model/server.js";
import { unlessRefused } from "../../runtime/client/activity.js";
import { RawConnection } from "../../runtime/client/raw-connection.js";
import { provenEndpoint } from "../../runtime/process/probe.js";

/**
 * Unloads sessions from a running server's memory at once, even if they are in use or contain unsaved changes, because
 * they belong to another host by now.
 */
export async function unloadAtOnce(server: ServerRecord, ids: readonly string[], answerMs: number): Promise<void> {
  if (ids.length === 0) return;
  await using connection = await RawConnection.open(provenEndpoint(server), AbortSignal.timeout(answerMs));
  for (const sessionId of ids) {
    // A refusal means that the session was not in memory, or that the server unloaded it without saving.
    await unlessRefused(connection.request("sessions.close", { sessionId }));
  }
}

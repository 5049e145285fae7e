import { isDeepStrictEqual } from "node:util";
import type { ProviderConfig } from "@github/copilot-sdk";
import type { ServerRecord } from "../../model/server.js";
import type { SessionRecord } from "../../model/session.js";
import type { SessionsContext } from "../context.js";
import { noteOpened, stampOf } from "./open-notes.js";

interface Context {
  provider: Pick<SessionsContext["provider"], "lastGiven" | "noteGiven">;
}

interface Place {
  record: Pick<SessionRecord, "id">;
  server: ServerRecord;
}

/**
 * Whether the server got this provider for the session by the {@link giveProvider} of this process, and no process of the
 * fleet has loaded the session since, or given the server another provider.
 */
export function hasProvider(
  { provider: models }: Context,
  { record, server }: Place,
  provider: ProviderConfig,
): boolean {
  const last = models.lastGiven(record.id);
  return (
    last !== null &&
    last.launchId === server.launchId &&
    isDeepStrictEqual(last.provider, provider) &&
    stampOf(server, record.id) === last.stamp
  );
}

/**
 * Gives the server a provider for the session, and remembers that for {@link hasProvider}.
 *
 * @param give sends the provider to the server. Rejects if the server may not have taken it.
 */
export async function giveProvider(
  { provider: models }: Context,
  { record: { id }, server }: Place,
  provider: ProviderConfig,
  give: () => Promise<unknown>,
): Promise<void> {
  models.noteGiven(id, null);
  const stamp = noteOpened(server, id);
  await give();
  if (stamp !== null && stampOf(server, id) === stamp) {
    models.noteGiven(id, { provider, launchId: server.launchId, stamp });
    return;
  }
  // Another process gave the server its provider at the same time. Nobody knows which of the two providers came last. So
  // replace the stamp of that process, too.
  noteOpened(server, id);
}

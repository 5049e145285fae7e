import type { HostDirectory } from "../../hosts/directory.js";
import type { Store } from "../../store/ports.js";

/** Whether the session was deleted, or its server is being drained. */
export async function isEnding(
  { store, directory }: { store: Store; directory: Pick<HostDirectory, "own"> },
  sessionId: string,
): Promise<boolean> {
  const record = await store.sessions.read(sessionId);
  if (record === null) return true;
  const { host = null, serverId } = record;
  const isHere = host === null || host === directory.own;
  const registry = isHere ? await store.registry.read() : await store.hosts?.registryOf(host);
  return registry?.servers[serverId]?.state === "draining";
}

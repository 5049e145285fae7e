import type { Store } from "../store/ports.js";

/**
 * Removes from the directory every host that is gone and that no session's record names. If such a host comes back, it
 * enters the directory like a new one.
 */
export async function forgetEmptyHosts(store: Store): Promise<void> {
  const { hosts } = store;
  if (hosts === null) return;
  const gone = (await hosts.list()).filter((host) => host.gone);
  if (gone.length === 0) return;
  const named = new Set((await store.sessions.list()).flatMap(({ host, from }) => [host, from?.host]));
  for (const { name } of gone) if (!named.has(name)) await hosts.forget(name);
}

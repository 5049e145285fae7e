import type { Store } from "../store/store.js";

/**
 * Takes hosts off the directory that are gone and have nothing that others could want: no session's record names them. One
 * that comes back enters as any other does.
 */
export async function forgetEmptyHosts(store: Store): Promise<void> {
  const { hosts } = store;
  if (hosts === null) return;
  const gone = (await hosts.list()).filter((host) => host.gone);
  if (gone.length === 0) return;
  const named = new Set((await store.listSessions()).flatMap(({ host, from }) => [host, from?.host]));
  for (const { name } of gone) if (!named.has(name)) await hosts.forget(name);
}

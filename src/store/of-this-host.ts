import type { SessionRecord, Store } from "./store.js";

/** Whether a session is on this host by its record. Where the store is one host's alone, all are. */
export function isOfThisHost({ hosts }: Pick<Store, "hosts">, { host }: Pick<SessionRecord, "host">): boolean {
  return hosts === null || host === undefined || host === hosts.own;
}

/** The records of the sessions on this host. */
export async function sessionsOfThisHost(store: Store): Promise<SessionRecord[]> {
  return (await store.listSessions()).filter((record) => isOfThisHost(store, record));
}

import type { SessionRecord } from "../model/session.js";
import type { Store } from "./ports.js";

/** Whether the session's record places it on this host. True for every session if the store has no hosts. */
export function isOfThisHost({ hosts }: Pick<Store, "hosts">, { host }: Pick<SessionRecord, "host">): boolean {
  return hosts === null || host === undefined || host === hosts.own;
}

export async function sessionsOfThisHost(store: Store): Promise<SessionRecord[]> {
  return (await store.sessions.list()).filter((record) => isOfThisHost(store, record));
}

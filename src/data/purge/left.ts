import { readdirSync, readFileSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { audited } from "../../events/audited.js";
import { Pseudonyms } from "../../events/pseudonyms.js";
import { ifThere } from "../../runtime/files/if-there.js";
import { chatHistoryPath } from "../../runtime/files/user-places.js";
import { listSessionFolders } from "../../runtime/history/session-state.js";
import { deleteSessionState } from "../../sessions/delete.js";
import { removeOrphan } from "../../sessions/gc/unused-servers.js";
import { LogFiles } from "../../store/file/events/files.js";
import { pseudonymize } from "./here.js";
import type { PurgeContext } from "./purge.js";

/** The value of each field `user` in the lines of a log, as JSON. */
const USERS = /"user":("(?:[^"\\\n]|\\.)*")/g;

/**
 * Erases what this host still has of a user who was purged while it was lost. The store knows only pseudonyms, so this finds the
 * names on the disk of this host. Leaves alone what was recorded since then. Can be repeated.
 *
 * @param left the pseudonyms of the user, of the user's server, and of the sessions on this host, in this order
 */
export async function eraseLeft({ sessions, stateRoot }: PurgeContext, left: readonly string[]): Promise<void> {
  const { store, events, config } = sessions.context;
  const pseudonyms = await Pseudonyms.open(stateRoot, store);
  const names = new Set(left);
  const isLeft = (name: string) => names.has(pseudonyms.of(name));
  await audited(events, { type: "user.purged", user: left[0] ?? null, reason: "host-back" }, async () => {
    const { servers } = await store.registry.read();
    const ids = new Set<string>();
    for (const server of Object.values(servers).filter(({ id, user }) => user === null || isLeft(id))) {
      for (const id of listSessionFolders(server.home).filter(isLeft)) {
        if ((await store.sessions.read(id)) !== null) continue;
        await deleteSessionState(server, id, config.health.timeoutMs);
        rmSync(join(dirname(server.home), "open", id), { force: true });
        ids.add(id);
      }
    }
    for (const id of ifThere(() => readdirSync(join(stateRoot, "servers"))) ?? []) {
      if (servers[id] === undefined && isLeft(id)) await removeOrphan(store, stateRoot, id);
    }
    const user = userIn(stateRoot, (name) => pseudonyms.of(name) === left[0]);
    // A user who has begun again is named in the store, and has new lines in the logs.
    if (user === null || (await store.placements.read(user)) !== null) return;
    rmSync(chatHistoryPath(stateRoot, user), { force: true });
    await pseudonymize({ store, user, stateRoot }, [...ids]);
  });
}

/** Finds a user in the logs of this host. */
function userIn(stateRoot: string, isWanted: (name: string) => boolean): string | null {
  const { open, segments } = new LogFiles(stateRoot);
  for (const folder of [open, segments, join(stateRoot, "usage")]) {
    for (const file of ifThere(() => readdirSync(folder)) ?? []) {
      const text = ifThere(() => readFileSync(join(folder, file), "utf8")) ?? "";
      for (const [, json = ""] of text.matchAll(USERS)) {
        const name = JSON.parse(json) as string;
        if (isWanted(name)) return name;
      }
    }
  }
  return null;
}

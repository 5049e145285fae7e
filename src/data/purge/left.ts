import { readdirSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { audited } from "../../events/audited.js";
import { Pseudonyms } from "../../events/pseudonyms.js";
import { readEvents } from "../../events/query.js";
import { removeBlocks } from "../../hosts/remains.js";
import { pause } from "../../runtime/clock.js";
import { ifThere } from "../../runtime/files/if-there.js";
import { chatHistoryPath } from "../../runtime/files/user-places.js";
import { listSessionFolders } from "../../runtime/history/session-state.js";
import { deleteSessionState } from "../../sessions/delete.js";
import { killStrays } from "../../sessions/gc/broken-servers.js";
import { removeOrphan } from "../../sessions/gc/unused-servers.js";
import { Segments } from "../../store/usage/segments.js";
import { LATE_EVENTS_MS, pseudonymize } from "./here.js";
import type { PurgeContext } from "./purge.js";

/** How many events to read at once. A page may begin in the middle of a segment, which is then read again. */
const PAGE = 10_000;

/**
 * Erases the data that this host still has of a user who was purged while this host was given up as lost
 * (`--lost-host`). The store contains only pseudonyms, so this finds the names on the disk of this host. Leaves alone
 * data that was recorded after the purge. Can be repeated.
 *
 * @param left the pseudonyms of the user, of the user's server, and of the sessions on this host, in this order
 */
export async function eraseLeft({ sessions, stateRoot, signal }: PurgeContext, left: readonly string[]): Promise<void> {
  const { store, events, config } = sessions.context;
  const pseudonyms = await Pseudonyms.open(stateRoot, store);
  const [ofUser, ...others] = left;
  const ofIds = new Set(others);
  // The logs also contain pseudonyms, which `of` returns unchanged. Exclude them, because only names need a
  // replacement.
  const isUser = (name: string) => name !== ofUser && pseudonyms.of(name) === ofUser;
  const isLeft = (id: string) => !ofIds.has(id) && ofIds.has(pseudonyms.of(id));
  await audited(events, { type: "user.purged", user: ofUser ?? null, reason: "host-back" }, async () => {
    const { servers } = await store.registry.read();
    const ids = new Set<string>();
    for (const server of Object.values(servers).filter(({ id, user }) => user === null || isLeft(id))) {
      for (const id of listSessionFolders(server.home).filter(isLeft)) {
        ids.add(id);
        if ((await store.sessions.read(id)) !== null) continue;
        await deleteSessionState(server, id, config.health.timeoutMs);
      }
      const notes = join(dirname(server.home), "open");
      for (const id of (ifThere(() => readdirSync(notes)) ?? []).filter(isLeft)) {
        ids.add(id);
        if ((await store.sessions.read(id)) === null) rmSync(join(notes, id), { force: true });
      }
    }
    const { own } = sessions.context.directory;
    const isErased = async (id: string) => isLeft(id) && (await store.sessions.read(id)) === null;
    if (own !== null) await removeBlocks(sessions.context, own, isErased);
    const folders = ifThere(() => readdirSync(join(stateRoot, "servers"))) ?? [];
    const orphans = folders.filter((id) => servers[id] === undefined && isLeft(id));
    // If this host was only cut off from the store, these servers may still run. End their processes first.
    if (orphans.length > 0) await killStrays(store, stateRoot, false);
    for (const id of orphans) await removeOrphan(store, stateRoot, id);
    // Wait until other processes of this host have written their last events.
    await pause(LATE_EVENTS_MS, signal);
    const logged = await namesInLogs(stateRoot);
    const user = [...logged.users].find(isUser);
    // A user with a placement has come back since the purge. Leave the logs alone, because they contain entries from
    // after the purge.
    if (user === undefined || (await store.placements.read(user)) !== null) return;
    rmSync(chatHistoryPath(stateRoot, user), { force: true });
    for (const id of logged.sessions) if (isLeft(id)) ids.add(id);
    for (const id of ids) if ((await store.sessions.read(id)) !== null) ids.delete(id);
    await pseudonymize({ store, user, stateRoot }, [...ids]);
  });
}

/** The names in the ledger and in the audit log of this host. Leaves out lines that cannot be read. */
async function namesInLogs(stateRoot: string): Promise<{ users: Set<string>; sessions: Set<string> }> {
  const found = { users: new Set<string>(), sessions: new Set<string>() };
  const add = (to: Set<string>, name: unknown) => {
    if (typeof name === "string") to.add(name);
  };
  for (let after = 0, hasMore = true; hasMore; ) {
    const page = await readEvents(stateRoot, { after, limit: PAGE });
    for (const { user, actor, sessionId } of page.events) {
      add(found.users, user);
      add(found.users, actor.user);
      add(found.sessions, sessionId);
    }
    ({ next: after, hasMore } = page);
  }
  const ledger = new Segments(join(stateRoot, "usage"), () => undefined);
  for (const number of ledger.numbers()) {
    await ledger.using(number, async (segment) => {
      for (const { lines } of segment.pieces()) {
        for (const { user, sessionId } of lines) {
          add(found.users, user);
          add(found.sessions, sessionId);
        }
        await setImmediate(); // let the supervisor do other work in between
      }
    });
  }
  return found;
}

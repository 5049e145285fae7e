import { existsSync, lstatSync, readlinkSync, realpathSync } from "node:fs";
import { dirname, join } from "node:path";
import { FleetError, quote } from "../../errors.js";
import { groupOfServer, isRunning } from "../../pool/server.js";
import { linkToPlace, makeHostFolder, placePath } from "../../runtime/files/shared-storage.js";
import { sessionStatePath } from "../../runtime/history/session-state.js";
import type { ServeContext } from "../context.js";
import { refuseUnlike } from "../heartbeat.js";

/** Moves this host's sessions to the shared storage, if there is one. Call this before other hosts count this host as alive. */
export async function placeSessions({ store, config }: Pick<ServeContext, "store" | "config">): Promise<void> {
  const { shared } = config.storage;
  if (store.hosts === null) return;
  await refuseUnlike(store.hosts, shared);
  if (shared === null) return;
  const { own } = store.hosts;
  const { servers } = await store.registry.read();
  for (const { home } of Object.values(servers)) refuseUnmounted(home, join(shared, "hosts", own));
  await makeHostFolder(shared, own);
  for (const server of Object.values(servers)) {
    const place = { shared, host: own, group: groupOfServer(server) };
    if (lstatSync(server.home, { throwIfNoEntry: false }) === undefined || isAt(server.home, placePath(place)))
      continue;
    if (isRunning(server)) {
      const message = `Server ${server.id} is running and keeps its sessions outside of the shared storage.`;
      throw new FleetError("FLEET_STORAGE_UNUSABLE", message, {
        suggestions: ["copilotfleet stop --all", "Then start serve again. It moves the sessions."],
      });
    }
    await linkToPlace(server.home, place);
  }
}

/** Throws if a home links to this host's folder and that folder is missing, because then the storage is not mounted. */
function refuseUnmounted(home: string, hostFolder: string): void {
  const state = sessionStatePath(home);
  if (lstatSync(state, { throwIfNoEntry: false })?.isSymbolicLink() !== true || existsSync(hostFolder)) return;
  if (!readlinkSync(state).startsWith(`${hostFolder}/`)) return;
  const message = `This host keeps sessions in ${quote(hostFolder)}, which does not exist. Either nothing is mounted, or the wrong file system is.`;
  throw new FleetError("FLEET_STORAGE_UNUSABLE", message, {
    suggestions: [`findmnt --target ${dirname(dirname(hostFolder))}`, "copilotfleet doctor"],
  });
}

function isAt(home: string, path: string): boolean {
  const state = sessionStatePath(home);
  if (lstatSync(state, { throwIfNoEntry: false })?.isSymbolicLink() !== true) return false;
  return realpathIfThere(state) === realpathIfThere(path);
}

function realpathIfThere(path: string): string {
  return existsSync(path) ? realpathSync(path) : path;
}

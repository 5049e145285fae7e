import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { userDigest } from "../../model/ids.js";
import { HeldFolder, removeIfThere, walk } from "./held-folder.js";
import { ifThereLater } from "./if-there.js";
import { TAKEN_FOLDER, usable } from "./shared-storage.js";

/* The places outside a home where data of a user or of a session is stored. */

/**
 * The path of the file with the prompts that a user typed in chats. @param owner the user; for a chat at a front door,
 * a text with the door's address
 */
export function chatHistoryPath(stateRoot: string, owner: string): string {
  return join(stateRoot, "chat", `${userDigest(owner)}.jsonl`);
}

/**
 * Removes the folders of a user's own server from the shared storage.
 *
 * @param hosts the hosts whose folders to search
 * @returns the size of the removed files, in bytes
 */
export async function removePlacesOf(shared: string, hosts: readonly string[], serverId: string): Promise<number> {
  let bytes = 0;
  await usable(shared, async () => {
    for (const host of hosts) {
      const path = join(shared, "hosts", host, serverId);
      using folder = HeldFolder.open(path);
      if (folder === null) continue;
      walk(folder, { left: Number.POSITIVE_INFINITY }, ({ size }) => {
        bytes += size;
        return true;
      });
      await removeIfThere(path);
    }
  });
  return bytes;
}

/** Removes the originals of a session that takeovers have left in the `taken` folders of these hosts. */
export async function removeTakenOf(shared: string, hosts: readonly string[], id: string): Promise<void> {
  await usable(shared, async () => {
    for (const host of hosts) {
      const groups = (await ifThereLater(async () => await readdir(join(shared, "hosts", host)))) ?? [];
      for (const group of groups) {
        const folder = join(shared, "hosts", host, group, TAKEN_FOLDER);
        const names = (await ifThereLater(async () => await readdir(folder))) ?? [];
        for (const name of names) if (name.startsWith(`${id}~`)) await removeIfThere(join(folder, name));
      }
    }
  });
}

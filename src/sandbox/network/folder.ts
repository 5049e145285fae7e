import { createHash } from "node:crypto";
import { mkdirSync } from "node:fs";
import { join } from "node:path";

/** The Unix socket of the proxy, in the network folder. */
export const EGRESS_SOCKET = "egress";
/** The folder in the network folder that has a file with the rules of each server: {@link rulesName}. */
export const SERVERS_FOLDER = "servers";

/**
 * A launch id opens the rules of its server to everyone who knows it, and Landlock does not hide the names of files: inotify
 * shows them. So the name has only the hash of the launch id.
 */
export function rulesName(launchId: string): string {
  return `${createHash("sha256").update(launchId).digest("hex")}.json`;
}

/**
 * The folder of the Unix sockets through which servers with a restricted network reach the world outside. A state folder
 * belongs to one host, so this folder does, too. No sandbox lets a server read it.
 */
export function networkFolder(stateRoot: string): string {
  return join(stateRoot, "network");
}

/** Makes the folder of the sockets, and the one of the rules in it. */
export function makeNetworkFolder(stateRoot: string): string {
  const folder = networkFolder(stateRoot);
  mkdirSync(join(folder, SERVERS_FOLDER), { recursive: true, mode: 0o700 });
  return folder;
}

import { createHash } from "node:crypto";
import { mkdirSync } from "node:fs";
import { join } from "node:path";

/** The Unix socket of the proxy, in the network folder. */
export const EGRESS_SOCKET = "egress";
/** The folder in the network folder with one file of rules for each server, named by {@link rulesName}. */
export const SERVERS_FOLDER = "servers";

/**
 * The name of the file with a server's rules. It contains only a hash of the launch id, because everyone who knows a
 * launch id can use the proxy with that server's rules, and Landlock does not hide the names of files: inotify shows
 * them.
 */
export function rulesName(launchId: string): string {
  return `${createHash("sha256").update(launchId).digest("hex")}.json`;
}

/**
 * The folder of the Unix sockets through which servers with a restricted network reach the world outside. A state
 * folder belongs to one host, so this folder does, too. No sandbox lets a server read this folder.
 */
export function networkFolder(stateRoot: string): string {
  return join(stateRoot, "network");
}

/** Makes the network folder, and the folder for rules in it. @returns the network folder */
export function makeNetworkFolder(stateRoot: string): string {
  const folder = networkFolder(stateRoot);
  mkdirSync(join(folder, SERVERS_FOLDER), { recursive: true, mode: 0o700 });
  return folder;
}

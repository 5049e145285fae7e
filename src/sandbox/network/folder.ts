import { mkdirSync } from "node:fs";
import { join } from "node:path";

/**
 * The folder of the Unix sockets through which servers with a restricted network reach the world outside. A state folder
 * belongs to one host, so this folder does, too. No sandbox lets a server read it.
 */
export function networkFolder(stateRoot: string): string {
  return join(stateRoot, "network");
}

/** Makes the folder of the sockets, and in it the folder `servers` with the rules of each server. The proxy's socket is `egress`. */
export function makeNetworkFolder(stateRoot: string): string {
  const folder = networkFolder(stateRoot);
  mkdirSync(join(folder, "servers"), { recursive: true, mode: 0o700 });
  return folder;
}

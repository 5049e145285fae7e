import { closeSync, constants, fstatSync, openSync, readlinkSync } from "node:fs";
import { shellQuote } from "../config/values/text.js";
import { FleetError, quote, systemCode } from "../errors.js";
import { O_PATH, system } from "../system/system.js";
import { contains, type Paths } from "./paths.js";
import { OF_THE_MACHINE } from "./programs.js";

/*
 * bwrap follows links when it mounts a folder. An agent may be able to change a parent of that folder, for example
 * because of the binds of an earlier configuration. The agent could then put a link there between the fleet's check and
 * the mount. So process 1 of the sandbox compares what bwrap mounted with what the fleet had checked.
 */

/**
 * Shell lines that exit with code 126 unless bwrap mounted exactly the files and folders that are at these paths now.
 * They do not check the machine's own folders, which only root can change.
 *
 * @param stat the path of the program `stat`
 * @throws FLEET_SANDBOX_UNSAFE if a path now leads through a link
 */
export function mountCheck({ read, write }: Paths, stat: string): string {
  const isOfMachine = (path: string) => path === "/" || OF_THE_MACHINE.some((folder) => contains(folder, path));
  const mounted = [...new Set([...read.filter((path) => !isOfMachine(path)), ...write])];
  if (mounted.length === 0) return "";
  const identities = mounted.map(identityOf).join("\n");
  return `[ "$(${shellQuote(stat)} -c '%d %i' -- ${mounted.map(shellQuote).join(" ")})" = '${identities}' ] || {
  echo "A folder of the sandbox was replaced while bwrap started." >&2
  exit 126
}
`;
}

/**
 * The device and inode numbers of a path. @throws FLEET_SANDBOX_UNSAFE if the path is missing or leads through a link
 */
function identityOf(path: string): string {
  const descriptor = open(path);
  try {
    const stats = fstatSync(descriptor, { bigint: true });
    const isLink = (Number(stats.mode) & constants.S_IFMT) === constants.S_IFLNK;
    if (isLink || readlinkSync(system().files.pathOf(descriptor)) !== path) throw replaced(path);
    return identityText(stats);
  } finally {
    closeSync(descriptor);
  }
}

/** The device and inode numbers as stat(1) prints them: unsigned. Node.js reads them as signed numbers. */
export function identityText({ dev, ino }: { dev: bigint; ino: bigint }): string {
  return `${BigInt.asUintN(64, dev)} ${BigInt.asUintN(64, ino)}`;
}

function open(path: string): number {
  try {
    return openSync(path, O_PATH | constants.O_NOFOLLOW);
  } catch (error) {
    throw systemCode(error) === undefined ? error : replaced(path, error);
  }
}

function replaced(path: string, cause?: unknown): FleetError {
  const problem = `${quote(path)} was removed or replaced by a link after the fleet had checked it, perhaps by an agent.`;
  return new FleetError("FLEET_SANDBOX_UNSAFE", problem, { cause, suggestions: [`ls -ld ${shellQuote(path)}`] });
}

import { lstatSync, type Stats, statfsSync } from "node:fs";
import { FleetError, quote, systemCode } from "../../errors.js";
import { makeFolder } from "./durable.js";
import { mediumError } from "./failures.js";

/** File systems that other hosts share: no identity of a process or socket can be proved across them. statfs(2). */
const NETWORK_FILE_SYSTEMS: ReadonlyMap<number, string> = new Map([
  [0x6969, "NFS"],
  [0x517b, "SMB"],
  [0xff534d42, "CIFS"],
  [0xfe534d42, "SMB2"],
]);

const ALLOW_NETWORK = "COPILOTFLEET_ALLOW_NETWORK_FS";

export interface StateFolderOptions {
  /** The type number of the file system at a path; replaced in tests. */
  fileSystemType?: (path: string) => number;
  env?: NodeJS.ProcessEnv;
}

/**
 * Refuses a state folder through which somebody else could read, plant or change state. One that is not there is fine.
 *
 * @throws FleetError `FLEET_STATE_UNSAFE`.
 */
export function checkStateFolder(path: string, options: StateFolderOptions = {}): void {
  const stats = lstatIfThere(path);
  if (stats === undefined) return;
  if (stats.isSymbolicLink()) {
    throw unsafe(path, "is a symbolic link, which whoever owns it can point elsewhere", [
      `export COPILOTFLEET_HOME="$(realpath ${shellQuote(path)})"`,
    ]);
  }
  if (!stats.isDirectory())
    throw unsafe(path, "is not a folder", [`mv ${shellQuote(path)} ${shellQuote(`${path}.old`)}`]);
  const uid = process.getuid?.();
  if (uid !== undefined && stats.uid !== uid) {
    throw unsafe(path, `belongs to uid ${stats.uid}, and this process runs as uid ${uid}`, [
      `sudo chown -R ${uid} ${shellQuote(path)}`,
    ]);
  }
  if ((stats.mode & 0o022) !== 0) {
    const mode = (stats.mode & 0o7777).toString(8).padStart(4, "0");
    throw unsafe(path, `can be written by others (mode ${mode})`, [`chmod go-w ${shellQuote(path)}`]);
  }
  refuseNetwork(path, options);
}

/** Creates the state folder (mode 0700) if it is not there, and checks it. */
export function ensureStateFolder(path: string, options: StateFolderOptions = {}): void {
  checkStateFolder(path, options);
  try {
    makeFolder(path);
  } catch (error) {
    throw mediumError("write", path, error);
  }
  // Once more: it was made in a folder that might be on the network, or by somebody else at the same moment.
  checkStateFolder(path, options);
}

function refuseNetwork(path: string, { fileSystemType = typeOf, env = process.env }: StateFolderOptions): void {
  // The numbers are Linux's; macOS counts its file systems in the order of their registration.
  if (env[ALLOW_NETWORK] === "1" || process.platform !== "linux") return;
  const name = NETWORK_FILE_SYSTEMS.get(fileSystemType(path) >>> 0);
  if (name === undefined) return;
  throw unsafe(path, `is on a network file system (${name}), where a commit of one host may not be seen by another`, [
    "export COPILOTFLEET_HOME=<a folder on a local disk>",
    `export ${ALLOW_NETWORK}=1  # if only this host ever uses the folder`,
  ]);
}

function typeOf(path: string): number {
  try {
    return statfsSync(path).type;
  } catch (error) {
    throw mediumError("read", path, error);
  }
}

function lstatIfThere(path: string): Stats | undefined {
  try {
    return lstatSync(path, { throwIfNoEntry: false });
  } catch (error) {
    if (systemCode(error) === "ENOTDIR") throw unsafe(path, "lies below something that is not a folder", []);
    throw mediumError("read", path, error);
  }
}

function unsafe(path: string, what: string, suggestions: string[]): FleetError {
  return new FleetError("FLEET_STATE_UNSAFE", `The state folder ${quote(path)} ${what}.`, { suggestions });
}

/** For a command that is meant to be pasted. */
function shellQuote(path: string): string {
  return /^[\w/.@%+,:=-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`;
}

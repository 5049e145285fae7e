import { randomBytes } from "node:crypto";
import { mkdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { FleetError, quote, systemCode } from "../../base/errors.js";
import { makeFolder, unlessThere } from "../../base/if-there.js";
import { shellQuote } from "../../base/values/text.js";

/** The name of a server's `COPILOT_HOME`. The token and the log are beside it. */
export const HOME = "home";

/**
 * The name of the folder in which all shared servers keep their sessions. It is beside the servers' own folders, so no
 * server may have this id.
 */
const SHARED_STATE = "shared";

/** The folder for everything that the fleet stores for one server outside the registry. */
export function serverFolder(stateRoot: string, serverId: string): string {
  return join(stateRoot, "servers", serverId);
}

export function homeOf(stateRoot: string, serverId: string): string {
  return join(serverFolder(stateRoot, serverId), HOME);
}

export function logPath(home: string): string {
  return join(dirname(home), "server.log");
}

function tokenPath(home: string): string {
  return join(dirname(home), "connection-token");
}

export function createServerFolder(home: string): void {
  for (const folder of [dirname(dirname(home)), dirname(home), home]) writing(folder, makeFolder);
}

/** The folder in which all shared servers keep their session state. */
export function sharedStatePath(stateRoot: string): string {
  return join(stateRoot, "servers", SHARED_STATE, "session-state");
}

/**
 * Links a shared server's session state to the folder of all shared servers, so that each of them can open any session.
 * The rest of each home stays separate, because two servers cannot write to the same home.
 */
export function shareSessionState(stateRoot: string, home: string): void {
  const common = sharedStatePath(stateRoot);
  mkdirSync(common, { recursive: true, mode: 0o700 });
  unlessThere(() => symlinkSync(common, join(home, "session-state")));
}

/**
 * Replaces the connection token and returns the new one. Does not sync it to disk, because nobody needs the token after
 * a crash of the machine.
 */
export function writeConnectionToken(home: string): string {
  const token = randomBytes(32).toString("base64url");
  writing(tokenPath(home), (path) => replaceServerFile(path, token));
  return token;
}

/** Runs `write`. @throws FleetError `FLEET_STATE_UNWRITABLE` when it fails */
export function writing<Result>(path: string, write: (path: string) => Result): Result {
  try {
    return write(path);
  } catch (cause) {
    throw unwritable(path, cause);
  }
}

/** Replaces a server's file atomically. The caller must be the only process that writes it. */
export function replaceServerFile(path: string, text: string): void {
  const temporary = `${path}.tmp`;
  rmSync(temporary, { force: true }); // a killed process may have left it
  // "wx" refuses a link that somebody has put there.
  writeFileSync(temporary, text, { mode: 0o600, flag: "wx" });
  renameSync(temporary, path);
}

export function unwritable(path: string, cause: unknown): FleetError {
  const code = systemCode(cause);
  const why = cause instanceof Error ? cause.message.replace(/, \w+ '.*$/s, "") : String(cause);
  const look = code === "ENOSPC" || code === "EDQUOT" ? ("df -h" as const) : ("ls -ld" as const);
  return new FleetError("FLEET_STATE_UNWRITABLE", `${quote(path)} cannot be written: ${why}.`, {
    suggestions: [`${look} ${shellQuote(dirname(path))}`],
    cause,
  });
}

export function readConnectionToken(home: string): string {
  try {
    const token = readFileSync(tokenPath(home), "utf8");
    if (token !== "") return token;
  } catch (cause) {
    const message = `The server's connection token cannot be read: ${tokenPath(home)}.`;
    throw new FleetError("FLEET_SERVER_UNREACHABLE", message, { cause });
  }
  throw new FleetError("FLEET_SERVER_UNREACHABLE", `The server's connection token is empty: ${tokenPath(home)}.`);
}

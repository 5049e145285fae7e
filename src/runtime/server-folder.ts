import { randomBytes } from "node:crypto";
import { mkdirSync, readFileSync, renameSync, symlinkSync, unlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { FleetError, quote, systemCode } from "../errors.js";

/** The name of a server's `COPILOT_HOME` inside its own folder; token and log lie beside it, out of the runtime's reach. */
export const HOME = "home";

/** Not a server's folder: an id of a server never is this word alone. */
const SHARED_STATE = "shared";

/** The folder of one server: everything the fleet keeps for it outside the registry. */
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

/** Creates the folder and the home, both for this user's eyes only. @throws FleetError `FLEET_STATE_UNWRITABLE`. */
export function createServerFolder(home: string): void {
  // Not with `recursive`: on a read-only disk that says ENOENT (Node 20).
  for (const folder of [dirname(dirname(home)), dirname(home), home]) {
    try {
      mkdirSync(folder, { mode: 0o700 });
    } catch (cause) {
      if (systemCode(cause) !== "EEXIST") throw unwritable(folder, cause);
    }
  }
}

/**
 * Shared servers have one place for the state of sessions, so that each can open any session. Everything else in their
 * homes stays apart: servers are not made to write one folder together.
 */
export function shareSessionState(stateRoot: string, home: string): void {
  const common = join(stateRoot, "servers", SHARED_STATE, "session-state");
  mkdirSync(common, { recursive: true, mode: 0o700 });
  try {
    symlinkSync(common, join(home, "session-state"));
  } catch (error) {
    if (systemCode(error) !== "EEXIST") throw error; // made by an earlier start
  }
}

/**
 * Makes a new 256-bit connection token and records it in a file of mode 0600. The old one is void from here on. It is
 * not forced to the disk: a machine that goes down takes the server along, and with it the use of the token.
 *
 * @throws FleetError `FLEET_STATE_UNWRITABLE`.
 */
export function writeConnectionToken(home: string): string {
  const token = randomBytes(32).toString("base64url");
  const path = tokenPath(home);
  // Always the same name: whoever holds the claim is the only one here, and removes what a killed one left.
  const temporary = `${path}.tmp`;
  try {
    unlinkIfThere(temporary);
    // Only as a new file: written through a link that somebody put there, the token would end up anywhere.
    writeFileSync(temporary, token, { mode: 0o600, flag: "wx" });
    renameSync(temporary, path);
  } catch (cause) {
    throw unwritable(path, cause);
  }
  return token;
}

function unlinkIfThere(path: string): void {
  try {
    unlinkSync(path);
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw error;
  }
}

/** A part of a server's folder that the system does not let us write, with what it says of that. */
export function unwritable(path: string, cause: unknown): FleetError {
  const code = systemCode(cause);
  const why = cause instanceof Error ? cause.message.replace(/, \w+ '.*$/s, "") : String(cause);
  return new FleetError("FLEET_STATE_UNWRITABLE", `${quote(path)} cannot be written: ${why}.`, {
    suggestions: [code === "ENOSPC" || code === "EDQUOT" ? `df -h ${dirname(path)}` : `ls -ld ${dirname(path)}`],
    cause,
  });
}

/** @throws FleetError `FLEET_SERVER_UNREACHABLE` when it cannot be read: without it nobody can talk to the server. */
export function readConnectionToken(home: string): string {
  try {
    const token = readFileSync(tokenPath(home), "utf8");
    if (token !== "") return token;
  } catch (cause) {
    throw new FleetError(
      "FLEET_SERVER_UNREACHABLE",
      `The server's connection token cannot be read: ${tokenPath(home)}.`,
      {
        cause,
      },
    );
  }
  throw new FleetError("FLEET_SERVER_UNREACHABLE", `The server's connection token is empty: ${tokenPath(home)}.`);
}

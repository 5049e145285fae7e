import { randomBytes } from "node:crypto";
import { linkSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { isHostName } from "../../config/rules.js";
import type { Config } from "../../config/schema.js";
import { parseObject } from "../../config/values/json.js";
import { shellQuote } from "../../config/values/text.js";
import { FleetError, quote, systemCode } from "../../errors.js";
import { readIfThere } from "../../store/file/failures.js";
import { ensureStateFolder } from "../../store/file/state-folder.js";
import { unwritable } from "./server-folder.js";

/**
 * The content of `host.json`. It identifies this host by its name in the fleet and by the random id of its state
 * folder.
 */
export interface HostNote {
  name: string;
  instance: string;
}

function pathOf(stateRoot: string): string {
  return join(stateRoot, "host.json");
}

/**
 * The name of this host: from the configuration, or else from `host.json` in this state folder, or else the machine's
 * name. The first `serve` or server writes that file, so that the host keeps its name when the machine is renamed.
 */
export function ownHostName({ host }: Pick<Config, "host">, stateRoot: string): string {
  const name = host.name ?? readNote(stateRoot)?.name ?? hostname().toLowerCase();
  if (isHostName(name)) return name;
  throw new FleetError(
    "FLEET_CONFIG_INVALID",
    `The name of this machine, ${quote(name)}, is not a valid name for a host of the fleet.`,
    { suggestions: ["export COPILOTFLEET_HOST_NAME=host-1"] },
  );
}

function readNote(stateRoot: string): HostNote | null {
  let text: string;
  try {
    text = readFileSync(pathOf(stateRoot), "utf8");
  } catch (error) {
    if (systemCode(error) === "ENOENT") return null;
    throw unreadable(stateRoot, error);
  }
  const { name, instance } = parseObject(text) ?? {};
  if (typeof name === "string" && typeof instance === "string") return { name, instance };
  throw unreadable(stateRoot, undefined);
}

/** Throws if the configuration renames a host whose servers and sessions Redis records under the old name. */
export function refuseRenamed({ store, host }: Pick<Config, "store" | "host">, stateRoot: string): void {
  if (store.kind === "file" || host.name === null) return;
  const before = readNote(stateRoot)?.name ?? host.name;
  if (before === host.name || !hasServers(stateRoot)) return;
  throw new FleetError(
    "FLEET_CONFIG_INVALID",
    `host.name is ${quote(host.name)}, but the state folder ${quote(stateRoot)} holds the servers and sessions of host ${quote(before)}.`,
    {
      suggestions: [
        `export COPILOTFLEET_HOST_NAME=${before}`,
        "To run another host, set COPILOTFLEET_HOME to another folder.",
      ],
    },
  );
}

function hasServers(stateRoot: string): boolean {
  const folder = join(stateRoot, "servers");
  return (readIfThere(folder, () => readdirSync(folder)) ?? []).length > 0;
}

/** The random id of this state folder, or null if neither `serve` nor a server has run on it. */
export function instanceOf(stateRoot: string): string | null {
  return readNote(stateRoot)?.instance ?? null;
}

/**
 * Returns the content of this state folder's `host.json`. Writes the file first if it is missing or contains another
 * name.
 */
export function ensureNote(stateRoot: string, name: string): HostNote {
  const before = readNote(stateRoot);
  if (before?.name === name) return before;
  const note = { name, instance: before?.instance ?? randomBytes(16).toString("hex") };
  const path = pathOf(stateRoot);
  const temp = `${path}.${note.instance.slice(0, 8)}.tmp`;
  try {
    ensureStateFolder(stateRoot);
    writeFileSync(temp, `${JSON.stringify(note)}\n`, { mode: 0o600 });
    if (before === null) linkSync(temp, path);
    else renameSync(temp, path);
  } catch (error) {
    // If another process of this host wrote the file first, use its content.
    const others = systemCode(error) === "EEXIST" ? readNote(stateRoot) : null;
    if (others?.name !== name) throw unwritable(path, error);
    return others;
  } finally {
    rmSync(temp, { force: true });
  }
  return note;
}

export function removeNote(stateRoot: string): void {
  rmSync(pathOf(stateRoot), { force: true });
}

function unreadable(stateRoot: string, cause: unknown): FleetError {
  return new FleetError("FLEET_STATE_CORRUPT", `${quote(pathOf(stateRoot))} does not name this host.`, {
    suggestions: [
      `rm ${shellQuote(pathOf(stateRoot))}`,
      "export COPILOTFLEET_HOST_NAME=NAME  # the earlier name of the host",
    ],
    cause,
  });
}

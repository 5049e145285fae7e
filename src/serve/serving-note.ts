import { readFileSync, realpathSync, rmSync } from "node:fs";
import { join } from "node:path";
import { FleetError, quote, systemCode } from "../base/errors.js";
import type { ProcessIdentity } from "../base/server.js";
import { isLoopback, readRedisUrl, showRedisUrl } from "../base/values/network.js";
import { parseObject } from "../base/values/text.js";
import type { Config } from "../config/schema.js";
import { unwritable } from "../runtime/files/server-folder.js";
import { ownHostName } from "../runtime/files/shared-storage.js";
import { isAlive, ownIdentity } from "../runtime/process/process-table.js";
import { readIfThere } from "../store/file/failures.js";
import { replaceStateFile } from "../store/file/state-folder.js";

/** The settings that decide where the state is. `store` is a URL without secrets, because messages show it. */
interface Settings {
  store: string;
  "host.name": string | null;
  "storage.shared": string | null;
}

/** The note that `serve` writes into its state folder. */
interface ServingNote {
  process: ProcessIdentity;
  settings: Settings;
}

function pathOf(stateRoot: string): string {
  return join(stateRoot, "serving.json");
}

function settingsOf(config: Config, stateRoot: string): Settings {
  const { store, storage } = config;
  if (store.kind === "file") return { store: "file", "host.name": null, "storage.shared": null };
  const target = readRedisUrl(store.url);
  return {
    store: target === null ? "" : showRedisUrl(target),
    "host.name": ownHostName(config, stateRoot),
    "storage.shared": storage.shared,
  };
}

export function noteServing(config: Config, stateRoot: string): void {
  const note: ServingNote = { process: ownIdentity(), settings: settingsOf(config, stateRoot) };
  try {
    replaceStateFile(stateRoot, pathOf(stateRoot), note);
  } catch (error) {
    throw unwritable(pathOf(stateRoot), error);
  }
}

/** Removes this process's note. */
export function forgetServing(stateRoot: string): void {
  const own = ownIdentity();
  const noted = readNote(stateRoot)?.process;
  if (noted?.pid === own.pid && noted.startTicks === own.startTicks) rmSync(pathOf(stateRoot), { force: true });
}

/**
 * Refuses settings that differ from those of the `serve` that runs on this state folder. With another store, this process
 * would not see the servers of that `serve`, and would start other servers with the same homes.
 */
export function refuseOtherSettings(config: Config, stateRoot: string): void {
  const note = readNote(stateRoot);
  if (note === null || !isAlive(note.process)) return;
  const own = settingsOf(config, stateRoot);
  for (const name of Object.keys(own) as (keyof Settings)[]) {
    const [given, serving] = [own[name], note.settings[name]];
    if (isSame(name, given, serving)) continue;
    const [here, there] = [given, serving].map((value) => (value === null ? "not set" : quote(value)));
    const message = `${name} is ${here}. For the serve that runs on the state folder ${quote(stateRoot)} (process ${note.process.pid}), it is ${there}.`;
    throw new FleetError("FLEET_CONFIG_INVALID", message, {
      suggestions: [
        `Set ${name} to the value that serve uses, or set COPILOTFLEET_HOME to another folder.`,
        `kill -TERM ${note.process.pid}  # ends that serve`,
      ],
    });
  }
}

function isSame(name: keyof Settings, one: string | null, other: string | null): boolean {
  if (one === other) return true;
  if (one === null || other === null || name === "host.name") return false;
  return name === "store" ? isSameStore(one, other) : isSameFolder(one, other);
}

/**
 * Whether two URLs name the same database, even if they differ in the user, the encryption, or the name of this
 * machine.
 */
function isSameStore(one: string, other: string): boolean {
  const [a, b] = [readRedisUrl(one), readRedisUrl(other)];
  if (a === null || b === null) return false;
  const isSameHost = a.host === b.host || (isLoopback(a) && isLoopback(b));
  return isSameHost && a.port === b.port && a.db === b.db && a.fleet === b.fleet;
}

function isSameFolder(one: string, other: string): boolean {
  try {
    return realpathSync(one) === realpathSync(other);
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    return false; // one of them does not exist
  }
}

function readNote(stateRoot: string): ServingNote | null {
  const path = pathOf(stateRoot);
  const text = readIfThere(path, () => readFileSync(path, "utf8"));
  const { process, settings } = (parseObject(text ?? "") ?? {}) as Partial<ServingNote>;
  return process === undefined || settings === undefined ? null : { process, settings };
}

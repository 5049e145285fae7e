import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Config } from "../config/schema.js";
import { parseObject } from "../config/values/json.js";
import { FleetError, quote, type Suggestion, systemCode } from "../errors.js";
import type { EventLog } from "../model/events/event.js";
import {
  ALL_PROTECTIONS,
  notRestricted,
  type Protection,
  type SandboxMode,
  type SandboxReport,
} from "../model/sandbox.js";
import { mediumError, writing } from "../store/file/failures.js";
import { replaceStateFile } from "../store/file/state-folder.js";
import { wantedNetwork } from "./network/trial.js";

/*
 * Each host remembers the sandbox of its last start, because an agent may make a sandbox fail: Landlock does not
 * restrict chmod. The next start must not use a weaker sandbox then.
 */

/** The sandbox of the last start on this host. */
interface Remembered {
  mode: SandboxMode;
  /** Reports list the missing protections instead. Stored as what it gives, because a later version may add protections. */
  gives: readonly Protection[];
}

export const ACCEPT_WEAKER: Suggestion = "copilotfleet doctor --accept-weaker-sandbox";

/** The fields of {@link SandboxReport} that depend on the machine alone. */
type Found = Pick<SandboxReport, "mode" | "not">;

/**
 * Refuses a sandbox that is weaker than the one of the last start, unless the operator asks for it by naming the mode "none",
 * another mode than that start had, or a network.
 *
 * @param found the sandbox that works now
 * @param now.reasons why stronger ones do not work
 * @throws FLEET_SANDBOX_UNUSABLE
 */
export function refuseWeaker(
  stateRoot: string,
  found: Found,
  { config, env, reasons }: { config: Config; env: NodeJS.ProcessEnv; reasons: readonly string[] },
): void {
  const { mode, network } = config.sandbox;
  if (mode === "none") return;
  const before = recall(stateRoot);
  if (before === "damaged") {
    // An agent may have damaged it, so do not treat it as missing.
    const message = `The note ${quote(pathOf(stateRoot))} about this host's sandbox is damaged.`;
    throw new FleetError("FLEET_SANDBOX_UNUSABLE", message, { suggestions: ["copilotfleet doctor", ACCEPT_WEAKER] });
  }
  if (before === null || (mode !== "auto" && mode !== before.mode)) return;
  const isNetworkChosen = network !== "auto" || wantedNetwork(config, env) === null;
  const lost = lostSince(before, found).filter((protection) => protection !== "network" || !isNetworkChosen);
  if (lost.length === 0) return;
  const now = found.mode === "none" ? "no sandbox works" : `only a weaker ${found.mode} works`;
  const why = reasons.length === 0 ? "" : `: ${reasons.join(", and ")}`;
  const message = `The last server started in the sandbox ${before.mode}. Now ${now} (${notRestricted(lost)})${why}.`;
  throw new FleetError("FLEET_SANDBOX_UNUSABLE", message, {
    suggestions: ["Repair the sandbox, because an agent may have broken it.", ACCEPT_WEAKER],
  });
}

/**
 * Remembers the sandbox of a start that {@link refuseWeaker} allowed. If it is weaker than the one before, records an event
 * first. A damaged note counts as missing, because `refuseWeaker` allows that only for the mode "none".
 */
export async function remember(stateRoot: string, found: Found, events: EventLog): Promise<void> {
  const noted = recall(stateRoot);
  const before = noted === "damaged" ? null : noted;
  if (before?.mode === found.mode && String(before.gives) === String(givenBy(found))) return;
  const lost = before === null ? [] : lostSince(before, found);
  if (before !== null && lost.length > 0) {
    const detail = `from ${before.mode} to ${found.mode}; ${notRestricted(lost)}`;
    await events.record({ type: "sandbox.weakened", reason: "configuration", detail });
  }
  await write(stateRoot, found);
}

/** Lets servers start in this sandbox from now on, although it is weaker. Records an event first. */
export async function acceptWeaker(stateRoot: string, found: Found, events: EventLog): Promise<void> {
  const detail = `to ${found.mode}; ${notRestricted(found.not)}`;
  await events.record({ type: "sandbox.weakened", reason: "accepted", detail });
  await write(stateRoot, found);
}

async function write(stateRoot: string, found: Found): Promise<void> {
  const path = pathOf(stateRoot);
  const content: Remembered = { mode: found.mode, gives: givenBy(found) };
  await writing(path, async () => replaceStateFile(stateRoot, path, content));
}

/** The sandbox that this host remembers; null before the first start. "damaged" if the note has no sandbox. */
function recall(stateRoot: string): Remembered | "damaged" | null {
  const path = pathOf(stateRoot);
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    // If the state folder is not a folder, a later check reports it.
    if (["ENOENT", "ENOTDIR"].includes(systemCode(error) ?? "")) return null;
    throw mediumError("read", path, error);
  }
  const { mode, gives } = (parseObject(text) ?? {}) as Partial<Remembered>;
  return mode !== undefined && Array.isArray(gives) ? { mode, gives } : "damaged";
}

function pathOf(stateRoot: string): string {
  return join(stateRoot, "sandbox.json");
}

function givenBy({ not }: Found): Protection[] {
  return ALL_PROTECTIONS.filter((protection) => !not.includes(protection));
}

function lostSince({ gives }: Remembered, { not }: Found): Protection[] {
  return not.filter((protection) => gives.includes(protection));
}

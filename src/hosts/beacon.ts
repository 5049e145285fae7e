import { randomBytes } from "node:crypto";
import { readFile, rename, rm, rmdir, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { shellQuote } from "../config/values/text.js";
import { FleetError, quote, systemCode } from "../errors.js";
import type { HostRecord } from "../model/host.js";
import { makeHostFolder, usable } from "../runtime/files/shared-storage.js";

/*
 * A beacon proves that two hosts mount the same folder. Each host writes a random number, its beacon, into the folder,
 * and publishes the number in its record in the store. The other hosts then look for that number in their own mount.
 */

/** How long to wait for a beacon, in milliseconds. A network file system may show the files of other hosts late. */
const PATIENCE_MS = 3_000;
const POLL_MS = 250;

function pathOf(shared: string, host: string): string {
  return join(shared, "hosts", host, "beacon");
}

/** Writes a new beacon for a host. @returns its number */
export async function writeBeacon(shared: string, host: string): Promise<string> {
  const number = randomBytes(16).toString("hex");
  await makeHostFolder(shared, host);
  const path = pathOf(shared, host);
  try {
    await writeFile(`${path}.tmp`, number, { mode: 0o600 });
    await rename(`${path}.tmp`, path);
  } catch (cause) {
    await rm(`${path}.tmp`, { force: true }).catch(() => "the error below reports the storage");
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new FleetError("FLEET_STORAGE_UNUSABLE", `The shared storage ${quote(shared)} cannot be written: ${why}.`, {
      suggestions: ["copilotfleet doctor", `ls -ld ${shellQuote(shared)}`],
      cause,
    });
  }
  return number;
}

/** Removes a host's beacon, if it has one, and the folders that are empty without it. */
export async function removeBeacon(shared: string, host: string, number: string | null | undefined): Promise<void> {
  const path = pathOf(shared, host);
  if (number != null) await rm(path, { force: true });
  for (const folder of [dirname(path), join(shared, "hosts")]) {
    await rmdir(folder).catch((error: unknown) => {
      // Keep a folder that is not empty. It contains sessions or the folders of other hosts.
      if (!["ENOENT", "ENOTEMPTY", "EEXIST"].includes(systemCode(error) ?? "")) throw error;
    });
  }
}

/** The names of the live hosts whose beacon is not in this folder. Such a host mounts another folder. */
export async function missingBeacons(shared: string, hosts: readonly HostRecord[]): Promise<string[]> {
  const there = hosts.filter(({ gone, beacon }) => !gone && beacon != null);
  const until = performance.now() + PATIENCE_MS;
  for (;;) {
    const seen = await Promise.all(there.map(async ({ name, beacon }) => (await readBeacon(shared, name)) === beacon));
    const missing = there.filter((_, index) => seen[index] === false).map(({ name }) => name);
    if (missing.length === 0 || performance.now() >= until) return missing;
    await delay(POLL_MS);
  }
}

export async function hasOwnBeacon(shared: string, { name, beacon }: HostRecord): Promise<boolean> {
  // Read only once, because a host sees its own files without delay.
  return beacon == null || (await readBeacon(shared, name)) === beacon;
}

/** The error when the folder does not contain the beacon of this host, for example because nothing is mounted there. */
export function notMounted(shared: string, host: Pick<HostRecord, "name">): FleetError {
  const message = `The folder ${quote(shared)} is not the folder that host ${quote(host.name)} shares with other hosts, or it is not mounted.`;
  return new FleetError("FLEET_STORAGE_UNUSABLE", message, {
    suggestions: [`findmnt --target ${shared}`, "copilotfleet doctor"],
  });
}

async function readBeacon(shared: string, host: string): Promise<string | null> {
  return await usable(shared, async () => {
    try {
      return await readFile(pathOf(shared, host), "utf8");
    } catch (error) {
      if (systemCode(error) === "ENOENT") return null;
      throw error;
    }
  });
}

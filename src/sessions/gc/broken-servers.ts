import { launchesOf } from "../../pool/admission.js";
import { isClaimed } from "../../pool/claims/held-claim.js";
import type { Pool } from "../../pool/pool.js";
import { isBroken, isRunning } from "../../pool/server.js";
import { type LaunchedProcess, processesByLaunch } from "../../runtime/process/launches.js";
import { stopServer } from "../../runtime/process/stop.js";
import type { Store } from "../../store/ports.js";

/**
 * The action that gc took on a server:
 * - `failed`: its main process had ended. gc ended its other processes and recorded it as failed.
 * - `stopped`: the command that was stopping it had died. gc stopped it.
 * - `adopted`: the command that was starting it had died. It runs, and gc recorded it as running.
 * - `removed`: it had no sessions and was unused for longer than the TTL. gc deleted its record and its folder.
 * - `orphan-removed`: like `removed`, for a server's folder without a record.
 * - `stray-killed`: gc killed a process of this fleet that has no record. The id is that of its launch.
 */
export type ServerAction = "failed" | "stopped" | "adopted" | "removed" | "orphan-removed" | "stray-killed";

export interface Cleared {
  id: string;
  action: ServerAction;
}

/**
 * Repairs every server record that a crash left broken, as `ps` does. With `dryRun`, changes nothing, and resolves with
 * the actions that a repair would take.
 */
export async function repairServers(
  store: Store,
  pool: Pool,
  options: { dryRun: boolean; signal: AbortSignal },
): Promise<Cleared[]> {
  const { servers } = await store.registry.read();
  const broken = Object.values(servers).filter(isBroken);
  if (options.dryRun) {
    return broken
      .filter((server) => !isClaimed(server) && !(server.state === "draining" && isRunning(server)))
      .map(({ id, state }) => ({ id, action: state === "draining" ? "stopped" : "failed" }));
  }
  if (broken.length === 0) return [];
  const ids = await pool.repair(options.signal);
  const after = (await store.registry.read()).servers;
  return ids.flatMap((id) => {
    const state = after[id]?.state;
    if (state === undefined) return [];
    return [{ id, action: state === "failed" || state === "stopped" ? state : "adopted" }];
  });
}

/** Ends the processes of this fleet that have no record. With `dryRun`, ends nothing and resolves with these processes. */
export async function killStrays(store: Store, stateRoot: string, dryRun: boolean): Promise<Cleared[]> {
  const strays = await findStrays(stateRoot, async () => launchesOf(await store.registry.read()));
  if (!dryRun) await endStrays(strays);
  return [...strays.keys()].map((id) => ({ id, action: "stray-killed" }));
}

type Strays = ReadonlyMap<string, readonly LaunchedProcess[]>;

/** The processes of this fleet that have no record, by launch id. @param recorded reads the launch ids of all records */
export async function findStrays(stateRoot: string, recorded: () => Promise<ReadonlySet<string>>): Promise<Strays> {
  // A launch is recorded before its process starts. So list the processes before reading the records: a process that
  // starts in between is then not taken for a stray.
  const launches = processesByLaunch(stateRoot);
  if (launches.size === 0) return launches;
  const known = await recorded();
  return new Map([...launches].filter(([launchId]) => !known.has(launchId)));
}

export async function endStrays(strays: Strays): Promise<void> {
  for (const launchId of strays.keys()) await stopServer({ process: null, launchId, home: null }, { graceMs: 0 });
}

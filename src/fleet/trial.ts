import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { PartialConfig } from "../config/load/load.js";
import { Fleet } from "./fleet.js";

/** Runs `use` with a fleet whose state is in a temporary folder. Afterwards, stops its servers and deletes the folder. */
export async function withTrialFleet<T>(
  { env, config }: { env: NodeJS.ProcessEnv; config: PartialConfig },
  use: (fleet: Fleet) => Promise<T>,
): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), "copilotfleet-trial-"));
  try {
    await using fleet = await Fleet.open({
      cwd: folder,
      env: { ...env, COPILOTFLEET_HOME: join(folder, "state") },
      // The trial must not touch the store or the storage of a real fleet.
      config: { ...config, store: "file", storage: { shared: null } },
    });
    try {
      return await use(fleet);
    } finally {
      const running = (await fleet.servers.list()).filter(({ pid }) => pid !== null);
      await fleet.servers.stop(
        running.map(({ id }) => id),
        { force: true },
      );
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

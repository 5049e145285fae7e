import { countOf } from "../../config/values/text.js";
import { FleetError } from "../../errors.js";
import { addUp, counted } from "../../model/progress.js";
import { mapConcurrently } from "../concurrency.js";
import type { Pool } from "../pool.js";
import { type ServerView, viewServer } from "../server.js";
import type { Stopped } from "../stop/stop.js";
import type { RecycleOptions } from "./recycle.js";

export interface RollingOptions extends Omit<RecycleOptions, "late"> {
  /** How many servers may refuse turns at the same time. */
  maxUnavailable: number;
}

export interface RollingResult {
  stopped: Stopped[];
  servers: ServerView[];
}

/**
 * Replaces running servers: first a single server (the canary), then at most `maxUnavailable` servers at once. After a
 * failure, begins no further replacement. Skips servers that do not run.
 */
export async function restartRolling(
  pool: Pool,
  ids: readonly string[],
  options: RollingOptions,
): Promise<RollingResult> {
  const result: RollingResult = { stopped: [], servers: [] };
  let failure: { id: string; error: unknown } | undefined;
  const progressOf = addUp(options.onProgress, ids.length);
  const replace = async (id: string) => {
    if (failure !== undefined) return;
    try {
      options.signal.throwIfAborted();
      const { drainTimeoutMs, signal } = options;
      const replaced = await counted(
        progressOf(id),
        1,
        async (onProgress) => await pool.recycle(id, { drainTimeoutMs, late: "cut", signal, onProgress }),
      );
      if (replaced.kind !== "replaced") return;
      result.stopped.push(replaced.stopped);
      result.servers.push(viewServer(replaced.server));
    } catch (error) {
      failure ??= { id, error };
    }
  };
  const [canary, ...rest] = ids;
  if (canary !== undefined) await replace(canary);
  await mapConcurrently(rest, options.maxUnavailable, replace);
  if (failure !== undefined) throw halted(failure, result, ids.length);
  return result;
}

function halted({ id, error }: { id: string; error: unknown }, done: RollingResult, all: number): unknown {
  if (!(error instanceof FleetError)) return error;
  const halt = `Server ${id} could not be replaced and keeps running as before. ${done.servers.length} of ${countOf(all, "server")} ${done.servers.length === 1 ? "was" : "were"} replaced, and the others are unchanged.`;
  return error.reworded(({ message, suggestions }) => ({
    message: `${halt} ${message}`,
    suggestions: [...suggestions, "copilotfleet ps"],
  }));
}

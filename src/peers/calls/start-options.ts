import type { SpawnRequest } from "../../fleet/options.js";
import type { SpawnOptions } from "../../pool/start/start.js";
import { deadline } from "../../runtime/clock.js";
import type { Call } from "./rpc-table.js";

export const START_WAIT_MS = 30_000;

/** The options with which this host starts servers. Their time limit begins now. Dispose them after the start. */
export function startOptions(
  { token, cwd, waitMs }: SpawnRequest,
  { signal }: Call,
): { options: SpawnOptions } & Disposable {
  const limit = deadline(waitMs ?? START_WAIT_MS, signal);
  return {
    options: { token, cwd, calledOff: signal, signal: limit.signal },
    [Symbol.dispose]: () => limit[Symbol.dispose](),
  };
}

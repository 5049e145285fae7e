import { type FleetErrorCode, isFleetError } from "../errors.js";
import type { ServeContext } from "./context.js";

/** Counts a failure. Returns the code under which it was counted. */
export function countFailure({ metrics }: Pick<ServeContext, "metrics">, error: unknown): FleetErrorCode {
  const code = isFleetError(error) ? error.code : "FLEET_INTERNAL";
  metrics.failed(code);
  return code;
}

/** Logs and counts a failure that the supervisor survives. The work is done again later. */
export function logFailure(
  { log, metrics }: Pick<ServeContext, "log" | "metrics">,
  what: string,
  error: unknown,
  fields: Readonly<Record<string, unknown>> = {},
): void {
  const code = countFailure({ metrics }, error);
  const reason = error instanceof Error ? error.message : String(error);
  const stack = code === "FLEET_INTERNAL" && error instanceof Error ? { stack: error.stack } : {};
  log("error", `${what}: ${reason}`, { ...fields, code, ...stack });
}

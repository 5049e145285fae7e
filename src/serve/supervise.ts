import { readFileSync } from "node:fs";
import type { ServeContext } from "./context.js";
import { FleetMetrics } from "./report/metrics.js";
import { Supervisor } from "./supervisor.js";

/** Starts a supervisor with its own metrics. @throws the same errors as `Supervisor.start`. */
export async function supervise(fleet: Omit<ServeContext, "metrics">, signal: AbortSignal): Promise<Supervisor> {
  const metrics = await FleetMetrics.open({ version: ownVersion() });
  return await Supervisor.start({ ...fleet, metrics }, signal);
}

/** The version of this package. Its `package.json` is above this file, both in the source and in the build. */
function ownVersion(): string {
  for (const above of ["../package.json", "../../package.json"]) {
    try {
      const { name, version } = JSON.parse(readFileSync(new URL(above, import.meta.url), "utf8")) as Record<
        string,
        unknown
      >;
      if (name === "copilotfleet") return String(version);
    } catch (error) {
      if (!(error instanceof Error && "code" in error && error.code === "ENOENT")) throw error;
    }
  }
  return "unknown";
}

import type { DoorEvent, DoorListeners } from "../gateway/context.js";
import type { LogLevel, ServeContext } from "./context.js";

/** What of the front door stands in the log, and how loud. What a client says never does. */
const LEVELS: Record<DoorEvent["event"], LogLevel> = {
  connected: "debug",
  "host-connected": "debug",
  closed: "debug",
  "token-refused": "warn",
  "protocol-error": "warn",
  denied: "warn",
  dropped: "debug",
  "server-lost": "info",
  "host-lost": "info",
  "session-reopened": "info",
  failed: "error",
};

/** Brings what happens at the front door into metrics and log. */
export function doorListeners({
  config,
  metrics,
  log,
}: Pick<ServeContext, "config" | "metrics" | "log">): DoorListeners {
  return {
    onRequest: (report) => {
      metrics.requested(report.method, report.outcome, report.ms / 1000);
      if (config.serve.accessLog) log("info", "request", { ...report });
    },
    onEvent: ({ event, ...fields }) => {
      if (event === "failed") metrics.failed(fields.code ?? "FLEET_INTERNAL");
      if (fields.limit !== undefined) metrics.limited(fields.limit);
      log(LEVELS[event], `front door: ${event}`, fields);
    },
  };
}

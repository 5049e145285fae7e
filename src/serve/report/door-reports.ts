import type { DoorEvent, DoorListeners } from "../../gateway/state/door/report.js";
import type { LogLevel, ServeContext } from "../context.js";

/** The log level of each event at the front door. The content of clients' messages is never logged. */
const LEVELS: Record<DoorEvent["event"], LogLevel> = {
  connected: "debug",
  "host-connected": "debug",
  closed: "debug",
  "token-refused": "warn",
  "protocol-error": "warn",
  "tls-refused": "warn",
  "certificate-replaced": "info",
  "certificate-problem": "warn",
  denied: "warn",
  dropped: "debug",
  "server-lost": "info",
  "server-ended": "info",
  "host-lost": "info",
  "session-reopened": "info",
  "session-unloaded": "info",
  failed: "error",
};

/** Reports requests and events at the front door or at the HTTP API to the metrics and the log. */
export function doorListeners(
  { config, metrics, log }: Pick<ServeContext, "config" | "metrics" | "log">,
  where: "front door" | "HTTP API" = "front door",
): DoorListeners {
  return {
    onRequest: (report) => {
      metrics.requested(report.method, report.outcome, report.ms / 1000);
      if (config.serve.accessLog) log("info", "request", { ...report });
    },
    onSignOn: ({ via, result, ms }) => metrics.signedOn(via, result, ms / 1000),
    onEvent: ({ event, ...fields }) => {
      if (event === "failed") metrics.failed(fields.code ?? "FLEET_INTERNAL");
      if (fields.limit !== undefined) metrics.limited(fields.limit);
      log(LEVELS[event], `${where}: ${event}`, fields);
    },
  };
}

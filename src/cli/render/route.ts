import type { RouteView } from "../../fleet/options.js";
import { type Column, renderState, renderTable, SERVER, USER } from "./table.js";

const HOST: Column = { heading: "HOST", cut: "middle" };

export function renderRoute({ user, host, serverId, server, reason }: RouteView): string {
  const hostColumn = host === null ? null : HOST;
  return renderTable(
    [USER, hostColumn, SERVER, { heading: "URL", yields: 1 }, "STATE", { heading: "REASON", cut: "end" }],
    [[user, host, serverId, server?.url ?? null, renderState(server?.state ?? "stopped"), reason]],
  );
}

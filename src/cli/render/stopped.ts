import { ERRORS } from "../../errors.js";
import type { Stopped } from "../../pool/stop/stop.js";
import { renderState, renderTable, SERVER } from "./table.js";

export function renderStopped(stopped: readonly Stopped[]): string {
  if (stopped.length === 0) return "Nothing to stop.";
  const withHost = new Set(stopped.map(({ hostName }) => hostName)).size > 1;
  return renderTable(
    [
      SERVER,
      withHost ? { heading: "HOST", yields: 1, cut: "middle" } : null,
      "OUTCOME",
      { heading: "CUT", cut: "end" },
    ],
    stopped.map(({ id, hostName = null, outcome, cut }) => [id, hostName, renderState(outcome), cut.join(", ")]),
  );
}

/** The exit code for a cut turn, even with `--force`. If no turn was cut, that for an unreachable host; otherwise 0. */
export function exitCodeOf(stopped: readonly Stopped[], away: readonly string[] = []): number {
  if (stopped.some(({ cut }) => cut.length > 0)) return ERRORS.FLEET_TURN_CUT.exit;
  return away.length > 0 ? ERRORS.FLEET_HOST_AWAY.exit : 0;
}

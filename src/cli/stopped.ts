import { ERRORS } from "../errors.js";
import type { Stopped } from "../pool/stopping.js";
import { renderState, renderTable } from "./table.js";

export function renderStopped(stopped: readonly Stopped[]): string {
  if (stopped.length === 0) return "Nothing to stop.";
  return renderTable(
    ["SERVER", "OUTCOME", "CUT"],
    stopped.map(({ id, outcome, cut }) => [id, renderState(outcome), cut.join(", ")]),
  );
}

/** A turn that was cut shows in the exit code, also where the outcome is what was asked for. */
export function exitCodeOf(stopped: readonly Stopped[]): number {
  return stopped.some(({ cut }) => cut.length > 0) ? ERRORS.FLEET_TURN_CUT.exit : 0;
}

import { FleetError } from "../errors.js";

/** The error of a call on a closed fleet. */
export function fleetClosed(): FleetError {
  return new FleetError("FLEET_CLOSED", "This fleet is closed.", {
    suggestions: ["Open another one with Fleet.open(), or close this one later."],
  });
}

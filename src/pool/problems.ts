import { FleetError } from "../errors.js";

/** A call to a fleet after its end. */
export function fleetClosed(): FleetError {
  return new FleetError("FLEET_CLOSED", "This fleet is closed.", {
    suggestions: ["Open another one with Fleet.open(), or close this one later."],
  });
}

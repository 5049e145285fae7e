import { FleetError, quote } from "../errors.js";

/** A flag whose value is not allowed, or not with what else was given. Exit code 2. */
export function badFlag(flag: string, value: unknown, allowed: string, suggestions: string[] = []): FleetError {
  return new FleetError("FLEET_USAGE_INVALID", `--${flag} ${quote(String(value))} is not allowed: ${allowed}.`, {
    suggestions,
  });
}

/** A configuration that cannot be put where it is to be put. Exit code 3. */
export function unfit(message: string, suggestions: string[]): FleetError {
  return new FleetError("FLEET_CONFIG_INVALID", message, { suggestions });
}

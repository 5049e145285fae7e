import { FleetError, quote, type Suggestion } from "../errors.js";

/** Creates the error for a flag whose value is not allowed, or does not fit the other settings. Exit code 2. */
export function badFlag(flag: string, value: unknown, allowed: string, suggestions: Suggestion[] = []): FleetError {
  return new FleetError("FLEET_USAGE_INVALID", `--${flag} is ${quote(String(value))}. Allowed: ${allowed}`, {
    suggestions,
  });
}

/** Creates the error for a configuration that cannot be deployed to the chosen target. Exit code 3. */
export function unfit(message: string, suggestions: Suggestion[]): FleetError {
  return new FleetError("FLEET_CONFIG_INVALID", message, { suggestions });
}

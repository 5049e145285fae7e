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

/**
 * Refuses a sandbox that needs namespaces where they are forbidden. The fleet would not start a server there.
 *
 * @param where the thing that forbids them
 */
export function checkSandbox(
  { sandbox: { mode, network } }: { sandbox: Record<"mode" | "network", string> },
  where: string,
): void {
  if (mode === "bwrap") {
    throw unfit(`sandbox.mode is "bwrap", which needs namespaces, but ${where} forbids them`, [
      'Set sandbox.mode to "auto" for the best sandbox that works there.',
    ]);
  }
  if (network !== "open") {
    throw unfit(`sandbox.network is ${quote(network)}, which needs namespaces, but ${where} forbids them`, [
      'Set sandbox.network to "open" there, and restrict the network of the whole host.',
    ]);
  }
}

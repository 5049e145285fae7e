import type { Config } from "../config/schema.js";
import { isLoopback } from "../config/values/redis-url.js";
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
 * Refuses an address at which `serve` would not start, because other machines can reach it and nothing encrypts the
 * connections.
 */
export function checkListen(config: Pick<Config, "serve" | "insecure">): void {
  for (const key of ["listen", "http"] as const) checkExposed(key, config, "so serve would not start");
}

/**
 * Refuses an address that other machines can reach if nothing encrypts the connections. @param harm the consequence,
 * for the message
 */
export function checkExposed(
  key: "listen" | "http",
  { serve, insecure }: Pick<Config, "serve" | "insecure">,
  harm: string,
): void {
  const address = serve[key];
  if (address === null || isLoopback(address) || serve.tls.cert !== null || insecure) return;
  const where = `${address.host}:${address.port}`;
  throw unfit(`serve.${key} is ${quote(where)}, which other machines can reach, and serve.tls is not set, ${harm}`, [
    "Set serve.tls.cert and serve.tls.key to the files of a certificate.",
    "Set insecure to true if only trusted machines can reach this network, or if a proxy adds TLS.",
  ]);
}

/**
 * Refuses a sandbox that needs namespaces where they are forbidden, because the fleet would not start a server there.
 *
 * @param where the thing that forbids namespaces, for the message
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
  if (network !== "open" && network !== "auto") {
    throw unfit(`sandbox.network is ${quote(network)}, which needs namespaces, but ${where} forbids them`, [
      'Set sandbox.network to "open" there, and restrict the network of the whole host.',
    ]);
  }
}

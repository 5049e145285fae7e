import type { Address } from "../../config/rules.js";
import type { Config } from "../../config/schema.js";
import { isLoopback } from "../../config/values/redis-url.js";
import { FleetError, quote, type Suggestion } from "../../errors.js";
import { type InheritedListener, showAddress } from "../../runtime/launch/listen.js";
import { doorFiles } from "./certificates.js";
import { readTls } from "./files.js";

/** The configuration keys with the addresses at which clients reach this host. */
type DoorKey = "serve.listen" | "serve.http";

/**
 * Refuses a front door or an HTTP API that other machines can reach without TLS, unless the configuration allows it.
 * Does not check the address of an inherited descriptor, which {@link checkInherited} does.
 *
 * @throws FleetError `FLEET_CONFIG_INVALID`, also when the files of `serve.tls` cannot be used.
 */
export function checkExposure(
  { serve, host, insecure }: Pick<Config, "serve" | "host" | "insecure">,
  listen: Address | InheritedListener,
  { key = "serve.listen", hasPeers }: { key?: DoorKey; hasPeers: boolean },
): void {
  const files = doorFiles(serve.tls);
  if (files !== null) {
    readTls(files);
    return;
  }
  if (insecure) return;
  if (!("fd" in listen) && !isLoopback(listen)) throw exposed(key, listen);
  const { advertise } = host;
  if (hasPeers && advertise !== null && !isLoopback(advertise)) throw exposed("host.advertise", advertise);
}

/**
 * Does the check of {@link checkExposure} for an inherited descriptor, such as that of a systemd socket unit, once its
 * address is known.
 *
 * @throws FleetError `FLEET_CONFIG_INVALID`.
 */
export function checkInherited({ serve, insecure }: Pick<Config, "serve" | "insecure">, address: Address): void {
  if (doorFiles(serve.tls) === null && !isLoopback(address) && !insecure) throw exposed(INHERITED, address);
}

const INHERITED = "The address of the socket that was handed to this process";

function exposed(key: DoorKey | "host.advertise" | typeof INHERITED, address: Address): FleetError {
  const local: Readonly<Partial<Record<typeof key, readonly Suggestion[]>>> = {
    "serve.listen": ["COPILOTFLEET_SERVE_LISTEN=127.0.0.1:4300 copilotfleet serve"],
    "serve.http": ["COPILOTFLEET_SERVE_HTTP=127.0.0.1:4380 copilotfleet serve"],
  };
  const message =
    `${key} is ${quote(showAddress(address))}, which other machines can reach, and serve.tls is not set, so tokens and ` +
    "conversations would cross the network in plain text. Allowed: a loopback address, such as 127.0.0.1; or serve.tls.cert " +
    `and serve.tls.key; or insecure, if something else protects the connections`;
  const suggestions: Suggestion[] = [
    "Set serve.tls.cert and serve.tls.key to the files of a certificate.",
    "Set insecure to true if only trusted machines can reach this network, or if a proxy adds TLS.",
    ...(local[key] ?? []),
  ];
  return new FleetError("FLEET_CONFIG_INVALID", message, { suggestions });
}

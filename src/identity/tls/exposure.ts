import { FleetError, quote, type Suggestion } from "../../base/errors.js";
import type { HostRecord } from "../../base/host.js";
import { isLoopback } from "../../base/values/network.js";
import type { Address } from "../../config/rules.js";
import type { Config } from "../../config/schema.js";
import { type InheritedListener, showAddress } from "../../runtime/launch/listen.js";
import type { Endpoint } from "../../runtime/wire/rpc-client.js";
import type { PeerTls } from "../../runtime/wire/secure.js";
import { doorOf } from "../../servers/directory.js";
import { doorFiles } from "./certificates.js";
import { readTls, type TlsFiles } from "./files.js";

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

/** The settings of this host for its connections to other hosts. */
export type PeerSettings = Pick<Config["host"], "tls">;

/**
 * The front door of another host, with the token to show there.
 *
 * @throws FleetError `FLEET_HOST_AWAY` when the host is gone or has no front door, or when `host.tls` is set
 * and the front door has no TLS; `FLEET_CONFIG_INVALID` when the files of `host.tls` cannot be used.
 */
export function peerEndpoint(host: HostRecord, own: PeerSettings, token: string): Endpoint {
  const { hasTls, ...address } = doorOf(host);
  const door = { ...address, noDelay: true };
  const { cert, key, ca } = own.tls;
  if (hasTls) return { ...door, token, tls: readPeerTls(hostFiles(own.tls)) };
  const isTlsSet = [cert, key, ca].some((path) => path !== null);
  if (!isTlsSet) return { ...door, token };
  const message = `The front door of host ${quote(host.name)} has no TLS, so this host sends it nothing, because host.tls is set.`;
  throw new FleetError("FLEET_HOST_AWAY", message, {
    suggestions: [`Set serve.tls on host ${host.name}, and start its serve again.`],
  });
}

/** @throws FleetError `FLEET_CONFIG_INVALID`, which names the key and the file. */
export function readPeerTls(files: TlsFiles): PeerTls {
  const { own: _, ...material } = readTls(files);
  return material;
}

/** The files with which this host connects to front doors with TLS. */
export function hostFiles({ cert, key, ca }: PeerSettings["tls"]): TlsFiles {
  const named = (part: string, path: string | null) => (path === null ? null : { name: `host.tls.${part}`, path });
  return { cert: named("cert", cert), key: named("key", key), ca: named("ca", ca) };
}

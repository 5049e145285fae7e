import type { Config } from "../../config/schema.js";
import { FleetError, quote } from "../../errors.js";
import { doorOf } from "../../hosts/door.js";
import type { HostRecord } from "../../model/host.js";
import type { Endpoint } from "../../runtime/wire/rpc-client.js";
import type { PeerTls } from "../../runtime/wire/secure.js";
import { readTls, type TlsFiles } from "./files.js";

/** The settings of this host for its connections to other hosts. */
export type PeerSettings = Pick<Config["host"], "tls">;

/**
 * The front door of another host, with the token to show there.
 *
 * @throws FleetError `FLEET_HOST_AWAY` when the host is gone or has no front door, or when `host.tls` is set
 * and the front door has no TLS; `FLEET_CONFIG_INVALID` when the files of `host.tls` cannot be used.
 */
export function peerEndpoint(host: HostRecord, own: PeerSettings, token: string): Endpoint {
  const { hasTls, ...door } = doorOf(host);
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

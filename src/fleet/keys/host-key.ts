import { loadConfig } from "../../config/load/load.js";
import { FleetError, quote } from "../../errors.js";
import { certify } from "../../hosts/keys/host-keys.js";
import { ensureHostKey } from "../../hosts/keys/key-file.js";
import { ownHostName } from "../../runtime/files/host-note.js";
import type { FleetOptions } from "../options.js";
import { checkState } from "../state.js";

export interface HostKeyResult {
  host: string;
  /** The public key (Ed25519) in base64url. */
  key: string;
}

export interface HostCertificate {
  host: string;
  certificate: string;
}

/** Returns the public key of this host. Creates the key if this host has none. */
export function showHostKey(options: Pick<FleetOptions, "env" | "cwd" | "configFile">): HostKeyResult {
  const { config, stateRoot } = loadConfig({ env: process.env, cwd: process.cwd(), ...options });
  checkState(config, stateRoot);
  return { host: ownHostName(config, stateRoot), key: ensureHostKey(stateRoot).x };
}

/**
 * Signs a host's name and key with the fleet's private key. @param hostKey `NAME=KEY` @param caKey the path of the
 * private key
 */
export function signHostKey(hostKey: string, caKey: string): HostCertificate {
  const [, host, key] = /^([a-z0-9][a-z0-9.-]{0,62})=([A-Za-z0-9_-]{43})$/.exec(hostKey) ?? [];
  if (host === undefined || key === undefined) {
    const message = `${quote(hostKey)} is not the key of a host. Allowed: NAME=KEY, as copilotfleet host key prints it`;
    throw new FleetError("FLEET_USAGE_INVALID", message, { suggestions: ["copilotfleet host key"] });
  }
  return { host, certificate: certify(caKey, host, key) };
}

import { constants } from "node:crypto";
import type { TlsOptions } from "node:tls";
import type { Config } from "../../config/schema.js";
import { readTls, stampOf, type TlsFiles, type TlsMaterial, validityFault } from "./files.js";

/** The certificate files of the front door. Null without `serve.tls`. */
export function doorFiles({ cert, key, clientCa }: Config["serve"]["tls"]): TlsFiles | null {
  if (cert === null || key === null) return null;
  return {
    cert: { name: "serve.tls.cert", path: cert },
    key: { name: "serve.tls.key", path: key },
    ca: clientCa === null ? null : { name: "serve.tls.clientCa", path: clientCa },
  };
}

/**
 * The certificate of a front door, its key, and the authorities of its clients. {@link refresh} reads changed files
 * again.
 */
export class DoorCertificates {
  readonly #files: TlsFiles;
  #stamp: string;
  #material: TlsMaterial;

  /** @throws FleetError `FLEET_CONFIG_INVALID` when the files cannot be used. */
  constructor(files: TlsFiles) {
    this.#files = files;
    this.#stamp = stampOf(files);
    this.#material = readTls(files);
  }

  /** Whether clients need a certificate. */
  get areClientsChecked(): boolean {
    return this.#files.ca !== null;
  }

  get options(): TlsOptions {
    const { own: _, ...material } = this.#material;
    const areClientsChecked = this.areClientsChecked;
    return {
      ...material,
      minVersion: "TLSv1.2",
      requestCert: areClientsChecked,
      rejectUnauthorized: areClientsChecked,
      // Issue no session tickets, because OpenSSL does not check a resumed TLS session against the authorities again.
      // The authorities may have changed.
      secureOptions: constants.SSL_OP_NO_TICKET,
    };
  }

  /** Whether the certificate is for a host with this name. */
  isFor(name: string): boolean {
    return this.#material.own?.checkHost(name) !== undefined;
  }

  /** Why the certificate is not valid at this time, as a sentence. Null if it is valid. */
  validityFault(now: Date): string | null {
    const { own } = this.#material;
    const { cert } = this.#files;
    return own === null || cert === null ? null : validityFault(own, cert, now);
  }

  /**
   * Reads the files again if one of them has changed. Files that cannot be used are read again only after their next
   * change.
   *
   * @returns whether there are new certificates
   * @throws FleetError `FLEET_CONFIG_INVALID` when the new files cannot be used. The old certificates then stay in use.
   */
  refresh(): boolean {
    const stamp = stampOf(this.#files);
    if (stamp === this.#stamp) return false;
    this.#stamp = stamp;
    this.#material = readTls(this.#files);
    return true;
  }
}

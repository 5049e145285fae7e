import { createPrivateKey, type KeyObject, X509Certificate } from "node:crypto";
import { statSync } from "node:fs";
import { createSecureContext, type TlsOptions } from "node:tls";
import type { Clock } from "../../base/clock.js";
import { FleetError, systemCode } from "../../base/errors.js";
import { printable, shellQuote } from "../../base/values/text.js";
import { readNamedFile } from "../../config/secret.js";
import type { DoorCertificates } from "./certificates.js";

/** The largest file to read, in bytes. No list of authorities is that large. */
const LARGEST_BYTES = 4 * 1024 * 1024;
const CERTIFICATE = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g;

/** A file that the configuration names, and the configuration key that names it. */
interface NamedFile {
  /** The dotted key, such as `serve.tls.cert`. */
  name: string;
  path: string;
}

/** The certificate that one side of a TLS connection shows, and the authorities that it trusts. */
export interface TlsFiles {
  cert: NamedFile | null;
  key: NamedFile | null;
  ca: NamedFile | null;
}

export interface TlsMaterial {
  cert?: string;
  key?: string;
  ca?: string[];
  /** The first certificate of `cert`. */
  own: X509Certificate | null;
}

/**
 * Reads the files of one side, and checks that the key belongs to the certificate.
 *
 * @throws FleetError `FLEET_CONFIG_INVALID`, which names the key and the file.
 */
export function readTls(files: TlsFiles): TlsMaterial {
  const ca = files.ca === null ? {} : { ca: certificatesIn(files.ca) };
  if (files.cert === null || files.key === null) return { ...ca, own: null };
  const { cert, key } = files;
  const [first = "", ...others] = certificatesIn(cert);
  const own = new X509Certificate(first);
  const keyText = read(key, { isPrivate: true });
  if (!own.checkPrivateKey(privateKey(key, keyText))) {
    throw unusable(key, `which does not fit the certificate in ${printable(cert.path)}`, "the key of this certificate");
  }
  const material = { cert: [first, ...others].join("\n"), key: keyText, ...ca };
  try {
    createSecureContext(material);
  } catch (error) {
    throw unusable(cert, `which OpenSSL refuses: ${reasonOf(error)}`, "a certificate with its key", error);
  }
  return { ...material, own };
}

/** A text that changes when a file is replaced. Follows links, because Kubernetes replaces a link and not the file. */
export function stampOf(files: TlsFiles): string {
  return [files.cert, files.key, files.ca]
    .map((file) => {
      if (file === null) return "";
      try {
        const { ino, size, mtimeNs, ctimeNs } = statSync(file.path, { bigint: true });
        return [ino, size, mtimeNs, ctimeNs].join();
      } catch (error) {
        return systemCode(error) ?? "unknown";
      }
    })
    .join(";");
}

/** Why a certificate is not valid at this time, as a sentence. Null if it is valid. */
export function validityFault(certificate: X509Certificate, { name, path }: NamedFile, now: Date): string | null {
  const where = `The certificate in ${printable(path)} (${name})`;
  if (new Date(certificate.validTo) < now) return `${where} expired on ${certificate.validTo}.`;
  if (new Date(certificate.validFrom) > now) return `${where} is not valid before ${certificate.validFrom}.`;
  return null;
}

function certificatesIn(file: NamedFile): string[] {
  const found = read(file).match(CERTIFICATE) ?? [];
  if (found.length === 0) throw unusable(file, "which has no certificate", "a file with certificates in PEM form");
  for (const text of found) {
    try {
      new X509Certificate(text);
    } catch (error) {
      throw unusable(file, "which has a damaged certificate", "a file with certificates in PEM form", error);
    }
  }
  return found;
}

function privateKey(file: NamedFile, text: string): KeyObject {
  try {
    return createPrivateKey(text);
  } catch (error) {
    const problem = /ENCRYPTED/.test(text) ? "which is encrypted" : "which is not a private key";
    throw unusable(file, problem, "a private key in PEM form without a passphrase", error);
  }
}

function read({ name, path }: NamedFile, { isPrivate = false } = {}): string {
  const subject = `${name} names the file ${printable(path)}, which`;
  return readNamedFile(path, subject, { code: "FLEET_CONFIG_INVALID", mostBytes: LARGEST_BYTES, isPrivate });
}

function unusable({ name, path }: NamedFile, problem: string, allowed: string, cause?: unknown): FleetError {
  const file = printable(path);
  return new FleetError("FLEET_CONFIG_INVALID", `${name} names the file ${file}, ${problem}. Allowed: ${allowed}`, {
    suggestions: [`ls -lL ${shellQuote(file)}`],
    cause,
  });
}

function reasonOf(error: unknown): string {
  return systemCode(error) ?? (error instanceof Error ? error.message : String(error));
}

/** How often to check whether the files of the certificates have changed, in milliseconds. */
const CHECK_MS = 2_000;

interface CertificateWatch {
  clock: Pick<Clock, "wait">;
  /** Ends the watch. */
  closed: AbortSignal;
  /** Uses new certificates for new connections. Open connections stay as they are. */
  use(options: TlsOptions): void;
  report(event: "certificate-problem" | "certificate-replaced", detail: string): void;
}

/** Uses new certificates when their files change, and reports problems. Never rejects. */
export async function watchCertificates(certificates: DoorCertificates, watch: CertificateWatch): Promise<void> {
  const { clock, closed } = watch;
  reportValidity(certificates, watch);
  while (!closed.aborted) {
    await clock.wait(CHECK_MS, { signal: closed, ref: false }).catch(() => "closed");
    if (!closed.aborted) refresh(certificates, watch);
  }
}

function refresh(certificates: DoorCertificates, watch: CertificateWatch): void {
  try {
    if (!certificates.refresh()) return;
    watch.use(certificates.options);
  } catch (error) {
    const { message } = error as Error;
    const detail = `The front door keeps its certificate, because the new one is unusable. ${message}`;
    watch.report("certificate-problem", detail);
    return;
  }
  watch.report("certificate-replaced", "New connections get the new certificate.");
  reportValidity(certificates, watch);
}

function reportValidity(certificates: DoorCertificates, { report }: CertificateWatch): void {
  const fault = certificates.validityFault(new Date());
  if (fault !== null) report("certificate-problem", fault);
}

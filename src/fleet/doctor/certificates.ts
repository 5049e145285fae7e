import type { Config } from "../../config/schema.js";
import { doorFiles } from "../../identity/tls/certificates.js";
import { readTls, type TlsFiles, validityFault } from "../../identity/tls/files.js";
import { hostFiles } from "../../identity/tls/peer.js";
import { type Finding, failed, ok, type Row, warning } from "./checks.js";

const DAY_MS = 24 * 3_600_000;
/** A certificate that expires in fewer days than this should have been renewed by now. */
const SOON_DAYS = 14;

/** Checks the files of `serve.tls` and `host.tls`. Runs only if the configuration names such files. */
export const CERTIFICATES: Row<{ config: Config }> = {
  name: "certificates",
  look: ({ config }) => {
    const sides = [doorFiles(config.serve.tls), hostFiles(config.host.tls)].filter((files) => files !== null);
    const findings = sides.map((files) => validityOf(files, new Date()));
    return (
      findings.find(({ level }) => level === "failed") ??
      findings.find(({ level }) => level === "warning") ??
      ok("valid")
    );
  },
};

/** @throws FleetError `FLEET_CONFIG_INVALID` when the files cannot be used. */
function validityOf(files: TlsFiles, now: Date): Finding {
  const { own } = readTls(files);
  if (own === null || files.cert === null) return ok("no certificate");
  const renew = "Renew the certificate. serve uses the new files within seconds.";
  const fault = validityFault(own, files.cert, now);
  if (fault !== null) return failed(fault.replace(/\.$/, ""), renew);
  const days = Math.floor((new Date(own.validTo).getTime() - now.getTime()) / DAY_MS);
  if (days < SOON_DAYS) return warning(`${files.cert.name} expires in ${days} days, on ${own.validTo}`, renew);
  return ok(`${files.cert.name} is valid until ${own.validTo}`);
}

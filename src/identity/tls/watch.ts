import type { TlsOptions } from "node:tls";
import type { Clock } from "../../runtime/clock.js";
import type { DoorCertificates } from "./certificates.js";

/** How often to check whether the files of the certificates have changed, in milliseconds. */
const CHECK_MS = 2_000;

export interface CertificateWatch {
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

import { conflict, type Origin } from "./problem.js";
import type { Config } from "./schema.js";

/** Refuses a certificate without its key, and authorities of clients without a certificate of the front door. */
export function checkTls({ serve, host }: Pick<Config, "serve" | "host">, origins: ReadonlyMap<string, Origin>): void {
  checkPair("serve", serve.tls, origins);
  checkPair("host", host.tls, origins);
  if (serve.tls.clientCa === null || serve.tls.cert !== null) return;
  const problem = "serve.tls.clientCa is set without serve.tls.cert";
  const allowed = "serve.tls.cert and serve.tls.key together";
  throw conflict(["serve.tls.clientCa", "serve.tls.cert"], [problem, allowed], origins);
}

function checkPair(
  section: "serve" | "host",
  { cert, key }: { cert: string | null; key: string | null },
  origins: ReadonlyMap<string, Origin>,
): void {
  if ((cert === null) === (key === null)) return;
  const names = [`${section}.tls.cert`, `${section}.tls.key`] as const;
  const [set, missing] = cert === null ? names.toReversed() : names;
  throw conflict([...names], [`${set} is set without ${missing}`, `${names.join(" and ")} together`], origins);
}

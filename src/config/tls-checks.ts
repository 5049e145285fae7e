import { conflict, type Origin } from "./problem.js";
import type { Config } from "./schema.js";

/** Refuses a certificate without its key, and authorities of clients without a certificate of the front door. */
export function checkTls({ serve: { tls } }: Pick<Config, "serve">, origins: ReadonlyMap<string, Origin>): void {
  const problem = faultOf(tls);
  if (problem === null) return;
  const names = ["serve.tls.cert", "serve.tls.key", ...(tls.clientCa === null ? [] : ["serve.tls.clientCa"])];
  throw conflict(names, [problem, "serve.tls.cert and serve.tls.key together"], origins);
}

function faultOf({ cert, key, clientCa }: Config["serve"]["tls"]): string | null {
  if ((cert === null) !== (key === null)) {
    return cert === null
      ? "serve.tls.key is set without serve.tls.cert"
      : "serve.tls.cert is set without serve.tls.key";
  }
  return clientCa !== null && cert === null ? "serve.tls.clientCa is set without serve.tls.cert" : null;
}

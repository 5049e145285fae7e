import type { Environment } from "./load/paths.js";
import { conflict, type Origin } from "./problem.js";
import type { Config } from "./schema.js";
import { allowsName, asciiName, readNetworkRule } from "./values/network-rule.js";

const HTTPS_PORT = 443;

/** Refuses network settings that contradict other settings, or with which no turn could reach a model. */
export function checkNetwork(
  { sandbox, provider }: Pick<Config, "sandbox" | "provider">,
  origins: ReadonlyMap<string, Origin>,
  { env }: { env: Environment },
): void {
  const { network, allow, mode } = sandbox;
  const restriction = `sandbox.network is "${network}"`;
  if (allow.length > 0 && network !== "allow-list") {
    const allowed = 'sandbox.network "allow-list", or no hosts in sandbox.allow';
    throw conflict(
      ["sandbox.allow", "sandbox.network"],
      [`sandbox.allow has hosts, but ${restriction}`, allowed],
      origins,
    );
  }
  if (network === "open" || network === "auto") return;
  if (mode === "none") {
    const problem = `${restriction}, which needs a sandbox, but sandbox.mode is "none"`;
    const allowed = 'another sandbox.mode, or sandbox.network "open"';
    throw conflict(["sandbox.network", "sandbox.mode"], [problem, allowed], origins);
  }
  if (provider !== null || network === "public") return;
  const rules = network === "none" ? [] : allow.map(readNetworkRule).filter((rule) => rule !== null);
  const missing = gitHubHosts(env).filter(({ name, port }) => !rules.some((rule) => allowsName(rule, name, port)));
  if (missing.length === 0) return;
  const entries = missing.map(({ name, port }) => `"${name}${port === HTTPS_PORT ? "" : `:${port}`}"`).join(" and ");
  const problem = `${restriction} and provider is null, so that servers could not reach GitHub's models`;
  const allowed = `sandbox.network "allow-list" with ${entries} in sandbox.allow, or a provider`;
  throw conflict(["sandbox.network", "sandbox.allow", "provider"], [problem, allowed], origins);
}

/** The hosts that the runtime needs for GitHub's models. Every server gets the variables that this reads. */
function gitHubHosts(env: Environment): { name: string; port: number }[] {
  const urls = [
    env.COPILOT_API_URL ?? "https://api.githubcopilot.com",
    env.COPILOT_DEBUG_GITHUB_API_URL ?? "https://api.github.com",
  ];
  return urls.flatMap((url) => {
    if (!URL.canParse(url)) return [];
    const { hostname, port, protocol } = new URL(url);
    const name = asciiName(hostname);
    return name === null ? [] : [{ name, port: Number(port || (protocol === "http:" ? 80 : HTTPS_PORT)) }];
  });
}

/** Refuses a certificate or a key without the other one, and `serve.tls.clientCa` without `serve.tls.cert`. */
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

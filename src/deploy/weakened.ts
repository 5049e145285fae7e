import type { Settings } from "./settings.js";

/** Values that are weaker than the defaults, each with what it allows. */
const WEAKER: Readonly<Record<string, readonly [value: unknown, effect: string]>> = {
  "serve.insecure": [
    true,
    "the front door and the HTTP API accept other machines without TLS, so tokens and conversations cross that network in plain text. With serve.tls, it is not necessary",
  ],
  "host.insecure": [
    true,
    "hosts send tokens to each other without TLS. With serve.tls and host.tls, it is not necessary",
  ],
  "storeOptions.insecure": [
    true,
    "the hosts reach Redis without TLS, so that network can read and change the state of the fleet",
  ],
  "session.approve": ["all", "all tool calls of a model run, and nobody is asked"],
  "session.host": ["owner", "users reach files and start programs on their own servers"],
  "sandbox.mode": ["none", "agents can read and change whatever the fleet's account can"],
  "sandbox.network": ["open", "agents reach every address that the host reaches"],
  "sandbox.unixSockets": [true, "agents may act through the Unix sockets of other programs"],
};

/** A sentence for each setting that is weaker than its default, for the reader of the output. */
export function weakenedNotices({ values }: Pick<Settings, "values">): string[] {
  return Object.entries(WEAKER).flatMap(([key, [weak, effect]]) =>
    values.get(key)?.value === weak ? [weakened(`${key} ${JSON.stringify(weak)}`, effect)] : [],
  );
}

export function weakened(setting: string, effect: string): string {
  return `Weaker than the default: ${setting}: ${effect}.`;
}

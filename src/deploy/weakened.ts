import type { Settings } from "./settings.js";

/** Values that are weaker than the defaults, each with what it allows. */
const WEAKER: Readonly<Record<string, readonly [value: unknown, effect: string]>> = {
  insecure: [
    true,
    "clients, hosts and Redis may be connected without TLS, so their network can read and change tokens, conversations and the state of the fleet. With serve.tls and an encrypted Redis, it is not necessary",
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

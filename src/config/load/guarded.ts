import type { Layer } from "./layers.js";

/**
 * All keys that a project's `.copilotfleet.json` may set without the user's trust, and why each of them is harmless. A
 * stranger may have written the file, because it may be part of a cloned repository. So all other keys are guarded: the
 * file may set them only if the user trusts it (`fleet/trust.ts`). A key belongs here only if none of its values runs
 * or sends anything, deletes anything, weakens a protection or a limit, opens an address, or stops a server.
 */
const UNGUARDED = new Map<string, { values: "all" | readonly unknown[]; because: string }>([
  ["session.model", { values: "all", because: "It chooses among the models of the user's own account or provider." }],
  ["session.approve", { values: ["none"], because: "It is the strictest value." }],
  ["session.host", { values: ["none"], because: "It is the strictest value." }],
  ["provider.type", { values: ["echo"], because: "The echo model is built in and sends nothing." }],
  ["insecure", { values: [false], because: "It is the strictest value." }],
]);

/** The values of a key that need no trust. */
export function valuesWithoutTrust(name: string): "all" | readonly unknown[] {
  return UNGUARDED.get(name)?.values ?? [];
}

/** The keys of a project's file that need the user's trust. */
export function guardedKeys(layer: Layer): string[] {
  const isGuarded = (name: string, value: unknown) => {
    const harmless = valuesWithoutTrust(name);
    return harmless !== "all" && !harmless.includes(value);
  };
  return [...layer].filter(([name, { value }]) => isGuarded(name, value)).map(([name]) => name);
}

import type { Config } from "../../config/schema.js";
import type { RestrictedNetwork } from "../../model/sandbox.js";
import { run } from "../landlock.js";
import { machineProgram } from "../programs.js";
import type { Mechanism } from "../sandbox.js";
import { Trials } from "../trials.js";
import { inTrialNamespace } from "./namespace.js";

/** A proxy of the operator, whose address is often a private one. */
const PROXY = /^(https?|all)_proxy$/i;

/**
 * The restricted network that servers should have. Null: an open one. With `auto`, that is the public network, unless
 * servers could not reach their models with it.
 */
export function wantedNetwork(
  { sandbox: { network, mode }, runtime }: Pick<Config, "sandbox" | "runtime">,
  env: NodeJS.ProcessEnv,
): RestrictedNetwork | null {
  if (network === "open") return null;
  if (network !== "auto") return network;
  const hasProxy = runtime.env.some((name) => PROXY.test(name) && (env[name] ?? "") !== "");
  return mode === "none" || hasProxy ? null : "public";
}

/**
 * Why this machine cannot restrict the network of servers in this way. Null if it can, or if the network is open.
 *
 * @param mechanism the sandbox that works on this machine; null if none does
 */
export async function failureOfNetwork(
  network: RestrictedNetwork | null,
  mechanism: Mechanism | null,
): Promise<string | null> {
  if (network === null) return null;
  if (mechanism === null) return "no sandbox works on this machine";
  // An agent with more system calls or capabilities could leave its network namespace.
  if (mechanism.not.includes("system-calls")) {
    return "the sandbox that works on this machine does not restrict system calls";
  }
  return await tryNamespace(network);
}

const trials = new Trials<boolean, string | null>();

/** Why this machine cannot make such a network namespace. Null if it can, or if the network is open. */
export async function tryNamespace(network: RestrictedNetwork | null): Promise<string | null> {
  if (network === null) return null;
  return await trials.of(network === "public", async () => {
    if (network === "public" && machineProgram("passt") === null)
      return "no folder of the machine in PATH has the program passt";
    const [program, ...args] = inTrialNamespace(["/bin/true"], network);
    const { failure } = await run(program, args);
    return failure === null ? null : `a network namespace failed (${failure})`;
  });
}

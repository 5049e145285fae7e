import type { Config } from "../../config/schema.js";
import { run } from "../landlock.js";
import type { Mechanism } from "../sandbox.js";
import { Trials } from "../trials.js";
import { inTrialNamespace } from "./namespace.js";

type Settings = Pick<Config["sandbox"], "network">;

/**
 * Why this machine cannot restrict the network of servers as configured. Null if it can, or if `sandbox.network` is
 * `open`.
 *
 * @param mechanism the sandbox that works on this machine; null if none does
 */
export async function failureOfNetwork(settings: Settings, mechanism: Mechanism | null): Promise<string | null> {
  if (settings.network === "open") return null;
  if (mechanism === null) return "no sandbox works on this machine";
  // An agent with more system calls or capabilities could leave its network namespace.
  if (mechanism.not.includes("system-calls")) {
    return "the sandbox that works on this machine does not restrict system calls";
  }
  return await tryNamespace(settings);
}

const trials = new Trials<"namespace", string | null>();

/** Why this machine cannot make a network namespace. Null if it can, or if the network is open. */
export async function tryNamespace({ network }: Settings): Promise<string | null> {
  if (network === "open") return null;
  return await trials.of("namespace", async () => {
    const [program, ...args] = inTrialNamespace(["/bin/true"]);
    const { failure } = await run(program, args);
    return failure === null ? null : `a network namespace failed (${failure})`;
  });
}

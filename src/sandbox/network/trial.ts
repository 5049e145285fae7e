import type { Config } from "../../config/schema.js";
import { run } from "../landlock.js";
import { TRIAL_PATHS } from "../paths.js";
import type { Mechanism } from "../sandbox.js";
import { inTrialNamespace } from "./namespace.js";

/** The mechanisms in which a network namespace was tried, with the reason if it failed. */
const trials = new WeakMap<Mechanism, string | null>();

/**
 * Why the configured network cannot be restricted on this machine. Null if it can be, or if it is open.
 *
 * @param mechanism null: no sandbox
 */
export async function failureOfNetwork(
  { network }: Pick<Config["sandbox"], "network">,
  mechanism: Mechanism | null,
): Promise<string | null> {
  if (network === "open") return null;
  if (mechanism === null) return "no sandbox works on this machine";
  // An agent with more system calls or capabilities could leave its network namespace.
  if (mechanism.not.includes("system-calls")) {
    return "the sandbox that works on this machine does not restrict system calls";
  }
  const known = trials.get(mechanism);
  if (known !== undefined) return known;
  const [program, ...args] = inTrialNamespace(mechanism.wrap(["/bin/true"], TRIAL_PATHS));
  const { failure } = await run(program, args);
  const why = failure === null ? null : `a network namespace failed (${failure})`;
  trials.set(mechanism, why);
  return why;
}

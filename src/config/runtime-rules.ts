import * as v from "valibot";
import { holdsGitHubToken } from "./values/text.js";

/** Flags that the fleet passes to every server. A second value would break the pool, or put a token on the command line. */
const OWN_FLAGS = ["--headless", "--port", "--host", "--stdio", "--auth-token-env", "--no-auto-login"];
const ALLOWED_ARGS = `a list of flags for the runtime, without tokens and without the flags that the fleet sets (${OWN_FLAGS.join(", ")})`;

/**
 * Variables that identify a server. A server that inherited the fleet's own values would get the identity of another
 * server.
 */
const OWN_VARIABLE = /^(?:COPILOT_CONNECTION_TOKEN|COPILOT_HOME|COPILOTFLEET_.*)$/;
const ALLOWED_ENV =
  "a list of the names of environment variables (letters, digits, _), without COPILOT_HOME, COPILOT_CONNECTION_TOKEN and COPILOTFLEET_*";

const isForeignFlag = (arg: string) => !OWN_FLAGS.some((flag) => arg === flag || arg.startsWith(`${flag}=`));

/** Flags for the runtime. Everybody can read them in the process table, so they must not contain a token. */
export const runtimeArgs = () => list(ALLOWED_ARGS, (arg) => isForeignFlag(arg) && !holdsGitHubToken(arg));

/** Names of the variables that a server gets in addition to the fleet's own allow-list. */
export const runtimeEnv = () =>
  list(ALLOWED_ENV, (name) => /^[A-Za-z_][A-Za-z0-9_]*$/.test(name) && !OWN_VARIABLE.test(name));

/** Names or patterns of tools, in the format of the SDK's `availableTools`. */
export const toolNames = () => list('an array of tool names or patterns, such as ["builtin:view"]', () => true);

function list(allowed: string, isAllowed: (item: string) => boolean) {
  const item = v.pipe(
    v.string(allowed),
    v.check((text) => text !== "" && !text.includes("\0") && isAllowed(text), allowed),
  );
  return v.array(item, allowed);
}

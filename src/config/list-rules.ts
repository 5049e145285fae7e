import { isIP } from "node:net";
import * as v from "valibot";
import { ALLOWED_NETWORK_RULES, networkRuleFault } from "./values/network-rule.js";
import { holdsGitHubToken } from "./values/text.js";
import { textFault } from "./values/text-fault.js";

/* The schemas of lists, with the metadata that `rules.ts` describes. */

/**
 * Flags that the fleet passes to every server. If `runtime.args` contained one of them, it would break the pool, or put
 * a token on the command line.
 */
const OWN_FLAGS = ["--headless", "--port", "--host", "--stdio", "--auth-token-env", "--no-auto-login"];
const ALLOWED_ARGS = `a list of flags for the runtime, without tokens and without the flags that the fleet sets (${OWN_FLAGS.join(", ")}), such as ["--log-level", "debug"]`;

/**
 * Variables that the fleet sets for each server. A server that inherited the fleet's own values would get the identity
 * of another server.
 */
const OWN_VARIABLE = /^(?:COPILOT_CONNECTION_TOKEN|COPILOT_HOME|COPILOTFLEET_.*)$/;
const ALLOWED_ENV =
  'a list of the names of environment variables (letters, digits, _), such as ["HTTPS_PROXY", "NO_PROXY"], without COPILOT_HOME, COPILOT_CONNECTION_TOKEN and COPILOTFLEET_*';

const isForeignFlag = (arg: string) => !OWN_FLAGS.some((flag) => arg === flag || arg.startsWith(`${flag}=`));

/** Flags for the runtime. Everybody can read them in the process table, so they must not contain a token. */
export const runtimeArgs = () =>
  list(ALLOWED_ARGS, (arg) => {
    if (holdsGitHubToken(arg)) return "which contains a token";
    return isForeignFlag(arg) ? null : "which the fleet sets";
  });

/** Names of the variables that a server gets in addition to the fleet's own allow-list. */
export const runtimeEnv = () =>
  list(ALLOWED_ENV, (name) => {
    if (OWN_VARIABLE.test(name)) return "which the fleet sets";
    return textFault(name, { characters: /[A-Za-z0-9_]/, first: /[A-Za-z_]/ });
  });

/** Names or patterns of tools, in the format of the SDK's `availableTools`. */
export const toolNames = () => list('a list of tool names or patterns, such as ["builtin:view"]', () => null);

/** Folders that servers reach in addition to their homes. */
export const binds = () =>
  list(
    'a list of absolute paths of folders, with {user} where the id of the user belongs, and ":ro" at the end if servers must not change the folder, such as ["/srv/work/{user}", "/opt/tools:ro"]',
    (path) => (path.startsWith("/") ? null : "which is not an absolute path"),
  );

/** The names and addresses that servers may reach. */
export const networkRules = () => list(ALLOWED_NETWORK_RULES, networkRuleFault);

/** Names of organizations on GitHub. */
export const organizations = () =>
  list('a list of names of organizations on GitHub, such as ["acme"]', (name) =>
    textFault(name, { characters: /[A-Za-z0-9-]/, first: /[A-Za-z0-9]/, longest: 39 }),
  );

/** Origins as browsers send them: a scheme, a host, and a port unless it is the scheme's default. */
export const origins = () =>
  list(
    'a list of origins, each with http:// or https://, a host and perhaps a port, such as ["https://app.example"]',
    (item) =>
      URL.canParse(item) && /^https?:/.test(item) && new URL(item).origin === item ? null : "which is not an origin",
  );

/** The addresses and networks of proxies. */
export const proxies = () =>
  list('a list of addresses and networks, such as ["192.0.2.7", "10.0.0.0/8"]', (item) => {
    const [, address = "", prefix = "0"] = /^([^/]*)(?:\/(\d{1,3}))?$/.exec(item) ?? [];
    const version = isIP(address);
    return version !== 0 && Number(prefix) <= (version === 4 ? 32 : 128)
      ? null
      : "which is not an address or a network";
  });

/** A list of texts. `faultOf` states why an item is refused. */
function list(allowed: string, faultOf: (item: string) => string | null) {
  const fault = (item: string) => textFault(item, { characters: /[^\0]/ }) ?? faultOf(item);
  const item = v.pipe(
    v.string(allowed),
    v.check((text) => fault(text) === null, allowed),
  );
  return v.pipe(v.array(item, allowed), v.metadata({ fault, allowed }));
}

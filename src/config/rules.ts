import { isIP } from "node:net";
import * as v from "valibot";
import * as duration from "../base/values/measures.js";
import { ALLOWED_SIZE, readSize, SIZE_PATTERN, sizeFault } from "../base/values/measures.js";
import { ALLOWED_USER, readUser, userFault } from "../base/values/names.js";
import { ALLOWED_NETWORK_RULES, ALLOWED_REDIS_URL, networkRuleFault, readRedisUrl } from "../base/values/network.js";
import {
  addressFault,
  blankFault,
  holdsGitHubToken,
  storeFault,
  textFault,
  urlFault,
  wholeNumberFault,
} from "../base/values/text.js";

/**
 * The metadata of a key's value that the loader needs. The functions below create one schema for each kind of value.
 * The message of each schema is the text after "Allowed:", so that one place can build every message.
 */
export interface Rule {
  /** Users may put a secret here in place of a reference to it, so messages never show the value. */
  concealed?: boolean;
  /** The value is a path. A relative path is resolved against the folder of the file that sets it. */
  path?: "always" | "with-slash" | "in-reference";
  /** States why a value, or an item of a list, is refused: "which has no unit". Null if it finds no reason. */
  fault?: (given: string) => string | null;
  /** An allowed value, for a key whose default depends on other keys. */
  example?: string | number;
  /** The text after "Allowed:" for a value that breaks this rule. */
  allowed?: string;
  /** The kind of text, for the reference of all keys: "duration", "URL". */
  kind?: string;
  /** A regular expression that all allowed values match, for editors. */
  pattern?: string;
  /** Whether a variable contains the value as JSON, because the value is an object or a list of objects. */
  json?: boolean;
  /**
   * Values of this key are never secret. So `config` and messages show even long ones, which they hide for other keys.
   */
  harmless?: boolean;
}

const MAX_COUNT = 1_000_000;
const LARGEST_PORT = 65_535;

/** A text that `read` converts to `T`. If `read` returns null, the text is refused. */
function text<T>(allowed: string, read: (text: string) => T | null, rule: Rule = {}) {
  return v.pipe(
    v.string(allowed),
    v.rawTransform<string, T>(({ dataset, addIssue, NEVER }) => {
      const value = read(dataset.value);
      if (value !== null) return value;
      addIssue({ message: allowed });
      return NEVER;
    }),
    v.metadata({ ...rule, allowed } as Record<string, unknown>),
  );
}

/** A text that is used unchanged. If `isAllowed` returns false, the text is refused. */
const textThat = (allowed: string, isAllowed: (text: string) => boolean, rule?: Rule) =>
  text(allowed, (given) => (isAllowed(given) ? given : null), rule);

/** A duration or a size: a text with a unit, which `read` converts to a number. */
const measure = (
  allowed: string,
  read: (text: string) => number | null,
  unit: "s" | "mb",
  maxMs = duration.LONGEST_MS,
  rule: Rule = {},
) =>
  text(allowed, read, {
    ...rule,
    ...(unit === "s"
      ? { kind: "duration", pattern: duration.DURATION_PATTERN }
      : { kind: "size", pattern: SIZE_PATTERN }),
    fault: (given) =>
      unit === "s" ? duration.durationFault(given, maxMs) : sizeFault(given, / to (\d+mb)$/.exec(allowed)?.[1]),
  });

const within =
  ([min, max]: [number, number], read: (text: string) => number | null) =>
  (given: string) => {
    const value = read(given);
    return value !== null && value >= min && value <= max ? value : null;
  };

export const choice = <const T extends readonly [string, ...string[]]>(options: T) =>
  v.picklist(
    options,
    options
      .map((option) => `"${option}"`)
      .join(", ")
      .replace(/, (?=[^,]*$)/, " or "),
  );

export const flag = () => v.boolean("true or false");

const whole = (min: number, max: number, rule: Rule = {}) => {
  const allowed = `a whole number from ${min} to ${max}`;
  return v.pipe(
    v.number(allowed),
    v.integer(allowed),
    v.minValue(min, allowed),
    v.maxValue(max, allowed),
    v.metadata({ ...rule, allowed, fault: (given: string) => wholeNumberFault(given, [min, max]) }),
  );
};

export const count = (rule: Rule = {}, least = 1) => whole(least, MAX_COUNT, rule);
/** A number of model tokens. */
export const tokens = () => whole(1, Number.MAX_SAFE_INTEGER, { example: 100_000 });
/** The number of an App or an installation at GitHub. */
export const gitHubId = () => whole(1, Number.MAX_SAFE_INTEGER);
export const port = () => whole(1, LARGEST_PORT);

export const share = () => {
  const allowed = "a number above 0 and at most 1, such as 0.8";
  return v.pipe(v.number(allowed), v.gtValue(0, allowed), v.maxValue(1, allowed));
};

const span = (maxMs: number, rule?: Rule) =>
  measure(duration.allowedDuration(maxMs), (given) => duration.readDuration(given, maxMs), "s", maxMs, rule);

/** The age at which something expires. */
export const age = () => span(duration.LONGEST_MS);
/** A duration that a timer can wait for. */
export const wait = (rule?: Rule) => span(duration.LONGEST_TIMER_MS, rule);
export const leaseTtl = () =>
  measure(duration.ALLOWED_LEASE_TTL, duration.readLeaseTtl, "s", duration.LONGEST_TIMER_MS);
export const size = () => measure(ALLOWED_SIZE, readSize, "mb");

/** A size with a lower bound. */
export const sizeFrom = (least: string, example: string) =>
  measure(
    `a size with a unit (kb, mb, gb), such as "${example}", from ${least} to 1024gb`,
    within([readSize(least) ?? 0, Number.POSITIVE_INFINITY], readSize),
    "mb",
  );

/**
 * The size of the largest message. It has an upper bound, because several copies of a message must fit in memory, as
 * text.
 */
export const frameSize = () =>
  measure(
    'a size with a unit (kb, mb), such as "8mb", from 64kb to 256mb',
    within([64 * 1024, 256 * 1024 * 1024], readSize),
    "mb",
  );

export const ALLOWED_MODEL = 'the name of a model (1 to 200 ASCII characters without spaces), such as "gpt-5"';
export const modelFault = (name: string) => textFault(name, { characters: /[\x21-\x7e]/, longest: 200 });
export const modelName = () =>
  textThat(ALLOWED_MODEL, (name) => modelFault(name) === null, {
    fault: modelFault,
    kind: "name of a model",
    harmless: true,
  });

const isFilled = (given: string) => given.trim() !== "" && !given.includes("\0");
const aPath = (allowed: string, path: "always" | "with-slash") =>
  textThat(allowed, isFilled, { fault: blankFault, path, kind: "path", harmless: true });
export const file = (example: string) => aPath(`the path of a file, such as "${example}"`, "always");
export const program = () => aPath('the path or the name of a program, such as "/usr/local/bin/copilot"', "with-slash");
export const folder = () => aPath('the path of a folder, such as "/mnt/copilotfleet"', "always");

export const httpUrl = () =>
  textThat(
    'an http:// or https:// URL without a user, a password or a key in it, such as "https://api.openai.com/v1"',
    (given) => {
      if (/[\s\p{Cc}]/u.test(given) || !URL.canParse(given)) return false;
      const { protocol, username, password } = new URL(given);
      if (protocol !== "http:" && protocol !== "https:") return false;
      return username === "" && password === "" && !holdsGitHubToken(given);
    },
    { fault: urlFault, kind: "URL" },
  );

export const userId = () =>
  text(ALLOWED_USER, readUser, {
    fault: (given) => (readUser(given) === null ? `which ${userFault(given)}` : null),
    kind: "id of a user",
    harmless: true,
  });

/** Whether a host may have this name, which becomes part of the names of folders and keys, and often is a DNS label. */
export const isHostName = (name: string) =>
  /^[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?$/.test(name) && !name.includes("..");
export const hostName = () =>
  textThat('1 to 63 lower-case letters, digits, dots and hyphens, such as "host-1"', isHostName, {
    fault: (name) =>
      textFault(name, { characters: /[a-z0-9.-]/, first: /[a-z0-9]/, last: /[a-z0-9]/, longest: 63 }) ??
      (name.includes("..") ? 'which contains ".."' : null),
    kind: "name of a host",
    harmless: true,
  });

/**
 * The shortest TTL of a host, in milliseconds. With a shorter TTL, other hosts would mistake a short stall of the host
 * for its death.
 */
const SHORTEST_HOST_TTL_MS = 3_000;
const LONGEST_HOST_TTL_MS = 600_000;
export const hostTtl = () =>
  measure(
    'a duration with a unit (s, m), such as "15s", from 3s to 10m',
    within([SHORTEST_HOST_TTL_MS, LONGEST_HOST_TTL_MS], (given) => duration.readDuration(given, duration.LONGEST_MS)),
    "s",
    LONGEST_HOST_TTL_MS,
  );

/** How far an issuer's clock may differ from this machine's clock. */
export const clockSkew = () => {
  const allowed = 'a duration with a unit (s, m), such as "30s", from 1s to 5m';
  return measure(
    allowed,
    within([1_000, 300_000], (given) => duration.readDuration(given, duration.LONGEST_MS)),
    "s",
  );
};

/** An address to listen on. Port 0 asks the system for a free port. */
export interface Address {
  host: string;
  port: number;
}

const addressThat = (allowed: string) =>
  text(allowed, parseAddress, {
    fault: (given) => (parseAddress(given) === null ? addressFault(given) : null),
    kind: "host:port",
  });
export const address = (port = 4300) =>
  addressThat(`host:port, such as "127.0.0.1:${port}" or "[::1]:${port}" (port 0: any free one)`);
/** The address at which other hosts reach this one. */
export const advertised = () =>
  addressThat('the host:port at which other hosts reach this one, such as "10.0.0.1:4300"');

export function parseAddress(given: string): Address | null {
  const [, ipv6, name, digits = ""] = /^(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):(0|[1-9]\d{0,4})$/.exec(given) ?? [];
  const host = ipv6 ?? name;
  if (host === undefined || Number(digits) > LARGEST_PORT) return null;
  return URL.canParse(`http://${given}`) ? { host, port: Number(digits) } : null;
}

/** The store and its address. */
export type StoreConfig = { kind: "file" } | { kind: "redis"; url: string };

export const store = () =>
  text(
    `"file", or ${ALLOWED_REDIS_URL}`,
    (given): StoreConfig | null => {
      if (given === "file") return { kind: "file" };
      return readRedisUrl(given) === null ? null : { kind: "redis", url: given };
    },
    { fault: storeFault, kind: '`"file"` or a Redis URL' },
  );

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

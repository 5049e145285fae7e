import { isIP } from "node:net";
import * as v from "valibot";
import * as measures from "../base/values/measures.js";
import { ALLOWED_USER, readUser, userFault } from "../base/values/names.js";
import {
  ALLOWED_NETWORK_RULES,
  ALLOWED_REDIS_URL,
  ALLOWED_SAFE_URL,
  isSafeUrl,
  networkRuleFault,
  readRedisUrl,
} from "../base/values/network.js";
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
 * Everything about a kind of value that its schema cannot express. The functions below create one schema for each kind.
 * The message of each schema is the text after "Allowed:", so that one place can build every message.
 */
export interface Rule {
  /** The text after "Allowed:" for a value that breaks this rule. */
  allowed: string;
  /** An allowed value. */
  example?: unknown;
  /** The kind of value, for the reference of all keys: "duration", "URL". */
  kind?: string;
  /** A regular expression that all allowed values match, for editors. */
  pattern?: string;
  /** States why a value, or an item of a list, is refused: "which has no unit". Null if it finds no reason. */
  fault?: (given: string) => string | null;
  /** The value is a path. A relative path is resolved against the folder of the file that sets it. */
  path?: "always" | "with-slash" | "in-reference";
  /** Whether a variable contains the value as JSON, because the value is an object or a list of objects. */
  json?: boolean;
  /** Users may put a secret here in place of a reference to it, so messages never show the value. */
  concealed?: boolean;
  /**
   * Values of this key are never secret. So `config` and messages show even long ones, which they hide for other keys.
   */
  harmless?: boolean;
}

const metadata = <T>(rule: Rule) => v.metadata<T, Record<string, unknown>>({ ...rule });

/** Marks a schema whose output has a unit. The resolved name of its key ends with it: `ttlMs`, `maxMemoryBytes`. */
const measured = <U extends "Ms" | "Bytes", S extends object>(unit: U, schema: S): S & { readonly unit: U } =>
  Object.assign(schema, { unit });

/** A text that `read` converts to `T`. If `read` returns null, the text is refused. */
function text<T>(allowed: string, read: (text: string) => T | null, rule: Omit<Rule, "allowed">) {
  return v.pipe(
    v.string(allowed),
    v.rawTransform<string, T>(({ dataset, addIssue, NEVER }) => {
      const value = read(dataset.value);
      if (value !== null) return value;
      addIssue({ message: allowed });
      return NEVER;
    }),
    metadata({ ...rule, allowed }),
  );
}

/** A text that is used unchanged. If `isAllowed` returns false, the text is refused. */
const textThat = (allowed: string, isAllowed: (text: string) => boolean, rule: Omit<Rule, "allowed">) =>
  text(allowed, (given) => (isAllowed(given) ? given : null), rule);

const within =
  (min: number, max: number, read: (text: string) => number | null) =>
  (given: string): number | null => {
    const value = read(given);
    return value !== null && value >= min && value <= max ? value : null;
  };

export const choice = <const T extends readonly [string, ...string[]]>(...options: T) => {
  const names = options.map((option) => `"${option}"`);
  const allowed = `${names.slice(0, -1).join(", ")} or ${names.at(-1)}`;
  return v.pipe(v.picklist(options, allowed), metadata({ allowed }));
};

export const flag = () => v.pipe(v.boolean("true or false"), metadata({ allowed: "true or false" }));

const MAX_COUNT = 1_000_000;
const LARGEST_PORT = 65_535;

const whole = (min: number, max: number, example: number) => {
  const allowed = `a whole number from ${min} to ${max}`;
  const fault = (given: string) => wholeNumberFault(given, [min, max]);
  return v.pipe(
    v.number(allowed),
    v.integer(allowed),
    v.minValue(min, allowed),
    v.maxValue(max, allowed),
    metadata({ allowed, fault, example }),
  );
};
export const count = (example = 1, least = 1) => whole(least, MAX_COUNT, example);
/** A number of model tokens. */
export const tokens = () => whole(1, Number.MAX_SAFE_INTEGER, 100_000);
/** The number of an App or an installation at GitHub. */
export const gitHubId = () => whole(1, Number.MAX_SAFE_INTEGER, 123_456);
export const port = () => whole(1, LARGEST_PORT, 5000);

/** A number that need not be whole. */
const fraction = (what: string, min: number, max: number, example: number) => {
  const allowed = `${what} from ${min} to ${max}, such as ${example}`;
  return v.pipe(v.number(allowed), v.minValue(min, allowed), v.maxValue(max, allowed), metadata({ allowed, example }));
};
export const share = () => fraction("a number", 0.01, 1, 0.8);
/** A number of processors. The kernel cannot enforce a limit below 0.01. */
export const processors = () => fraction("a number of processors", 0.01, 1024, 0.5);

/** A duration from `least` to `most`, in milliseconds. */
const duration = (most: number, allowed = measures.allowedDuration(most), least = 1, example = "24h") =>
  measured(
    "Ms",
    text(
      allowed,
      within(least, most, (given) => measures.readDuration(given, most)),
      {
        kind: "duration",
        pattern: measures.DURATION_PATTERN,
        fault: (given) => measures.durationFault(given, most),
        example,
      },
    ),
  );
/** The age at which something expires. */
export const age = () => duration(measures.LONGEST_MS);
/** A duration that a timer can wait for. */
export const wait = (example?: string) => duration(measures.LONGEST_TIMER_MS, undefined, 1, example);
export const leaseTtl = () =>
  duration(measures.LONGEST_TIMER_MS, measures.ALLOWED_LEASE_TTL, measures.SHORTEST_LEASE_MS);
/**
 * How long a host lives without a heartbeat. With a shorter TTL, other hosts would mistake a short stall of the host
 * for its death.
 */
export const hostTtl = () => duration(600_000, 'a duration with a unit (s, m), such as "15s", from 3s to 10m', 3_000);
/** How far an issuer's clock may differ from this machine's clock. */
export const clockSkew = () => duration(300_000, 'a duration with a unit (s, m), such as "30s", from 1s to 5m', 1_000);

/** A size. Without `least`, it is at least a byte. */
const sizeOf = (allowed: string, example: string, least = "", most = "1024gb") =>
  measured(
    "Bytes",
    text(allowed, within(measures.readSize(least) ?? 1, measures.readSize(most) ?? 1, measures.readSize), {
      kind: "size",
      pattern: measures.SIZE_PATTERN,
      fault: (given) => measures.sizeFault(given, most),
      example,
    }),
  );
export const size = () => sizeOf(measures.ALLOWED_SIZE, "512mb");
export const sizeFrom = (least: string, example: string) =>
  sizeOf(`a size with a unit (kb, mb, gb), such as "${example}", from ${least} to 1024gb`, example, least);
/**
 * The size of the largest message. It has an upper bound, because several copies of a message must fit in memory, as
 * text.
 */
export const frameSize = () =>
  sizeOf('a size with a unit (kb, mb), such as "8mb", from 64kb to 256mb', "8mb", "64kb", "256mb");

export const ALLOWED_MODEL = 'the name of a model (1 to 200 ASCII characters without spaces), such as "gpt-5"';
export const modelFault = (name: string) => textFault(name, { characters: /[\x21-\x7e]/, longest: 200 });
export const modelName = () =>
  textThat(ALLOWED_MODEL, (name) => modelFault(name) === null, {
    fault: modelFault,
    kind: "name of a model",
    example: "gpt-5",
    harmless: true,
  });

const aPath = (what: string, example: string, path: "always" | "with-slash" = "always") =>
  textThat(`${what}, such as "${example}"`, (given) => given.trim() !== "" && !given.includes("\0"), {
    ...{ fault: blankFault, path, kind: "path", example, harmless: true },
  });
export const file = (name: string) => aPath("the path of a file", `/etc/copilotfleet/${name}`);
export const program = () => aPath("the path or the name of a program", "/usr/local/bin/copilot", "with-slash");
export const folder = () => aPath("the path of a folder", "/mnt/copilotfleet");

function isPublicUrl(given: string): boolean {
  if (/[\s\p{Cc}]/u.test(given) || !URL.canParse(given)) return false;
  const { protocol, username, password } = new URL(given);
  if (protocol !== "http:" && protocol !== "https:") return false;
  return username === "" && password === "" && !holdsGitHubToken(given);
}
export const httpUrl = () =>
  textThat(
    'an http:// or https:// URL without a user, a password or a key in it, such as "https://api.openai.com/v1"',
    isPublicUrl,
    { fault: urlFault, kind: "URL", example: "https://api.openai.com/v1" },
  );
/** An https:// URL, whose host proves its identity with a certificate, or an http:// URL of this machine. */
export const safeUrl = () => textThat(ALLOWED_SAFE_URL, isSafeUrl, { kind: "URL", example: "https://api.github.com" });

export const userId = () =>
  text(ALLOWED_USER, readUser, {
    fault: (given) => (readUser(given) === null ? `which ${userFault(given)}` : null),
    kind: "id of a user",
    example: "alice",
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
    example: "host-1",
    harmless: true,
  });

/** An address to listen on. Port 0 asks the system for a free port. */
export interface Address {
  host: string;
  port: number;
}

const addressThat = (allowed: string, example: string) =>
  text(allowed, parseAddress, {
    fault: (given) => (parseAddress(given) === null ? addressFault(given) : null),
    kind: "host:port",
    example,
  });
export const address = (port = 4300) =>
  addressThat(`host:port, such as "127.0.0.1:${port}" or "[::1]:${port}" (port 0: any free one)`, `127.0.0.1:${port}`);
/** The address at which other hosts reach this one. */
export const advertised = () =>
  addressThat('the host:port at which other hosts reach this one, such as "10.0.0.1:4300"', "10.0.0.1:4300");

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

/** A text that must equal a text in a token, so it is used exactly as it was given. */
export const exact = (allowed: string) =>
  textThat(allowed, (given) => given.length >= 1 && given.length <= 512 && !/\p{Cc}/u.test(given), {});

/** An object or a list of objects. In a variable, it is JSON. */
export const asJson = <S extends v.GenericSchema>(schema: S, rule: Rule) =>
  v.pipe(schema, metadata({ json: true, kind: "object", ...rule }));

/** A list of texts. `faultOf` states why an item is refused. The example is a part of `allowed`. */
function list(allowed: string, faultOf: (item: string) => string | null = () => null) {
  const fault = (item: string) => textFault(item, { characters: /[^\0]/ }) ?? faultOf(item);
  const item = v.pipe(
    v.string(allowed),
    v.check((text) => fault(text) === null, allowed),
  );
  const [, example = ""] = /such as (\[.*?\])/.exec(allowed) ?? [];
  return v.pipe(v.array(item, allowed), metadata({ fault, allowed, example: JSON.parse(example) }));
}

/**
 * Flags that the fleet passes to every server. If `runtime.args` contained one of them, it would break the pool, or put
 * a token on the command line.
 */
const OWN_FLAGS = ["--headless", "--port", "--host", "--stdio", "--auth-token-env", "--no-auto-login"];

/** Flags for the runtime. Everybody can read them in the process table, so they must not contain a token. */
export const runtimeArgs = () =>
  list(
    `a list of flags for the runtime, without tokens and without the flags that the fleet sets (${OWN_FLAGS.join(", ")}), such as ["--log-level", "debug"]`,
    (arg) => {
      if (holdsGitHubToken(arg)) return "which contains a token";
      const isOwn = OWN_FLAGS.some((flag) => arg === flag || arg.startsWith(`${flag}=`));
      return isOwn ? "which the fleet sets" : null;
    },
  );

/**
 * Variables that the fleet sets for each server. A server that inherited the fleet's own values would get the identity
 * of another server.
 */
const OWN_VARIABLE = /^(?:COPILOT_CONNECTION_TOKEN|COPILOT_HOME|COPILOTFLEET_.*)$/;

/** Names of the variables that a server gets in addition to the fleet's own allow-list. */
export const runtimeEnv = () =>
  list(
    'a list of the names of environment variables (letters, digits, _), such as ["HTTPS_PROXY", "NO_PROXY"], without COPILOT_HOME, COPILOT_CONNECTION_TOKEN and COPILOTFLEET_*',
    (name) => {
      if (OWN_VARIABLE.test(name)) return "which the fleet sets";
      return textFault(name, { characters: /[A-Za-z0-9_]/, first: /[A-Za-z_]/ });
    },
  );

/** Names or patterns of tools, in the format of the SDK's `availableTools`. */
export const toolNames = () => list('a list of tool names or patterns, such as ["builtin:view"]');

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

import * as v from "valibot";
import type { FleetErrorCode } from "../errors.js";
import {
  ALLOWED_LEASE_TTL,
  allowedDuration,
  LONGEST_MS,
  LONGEST_TIMER_MS,
  readDuration,
  readLeaseTtl,
} from "./duration.js";
import { LARGEST_PORT } from "./number.js";
import { ALLOWED_REDIS_URL, readRedisUrl } from "./redis-url.js";
import { ALLOWED_SIZE, readSize } from "./size.js";
import { holdsGitHubToken } from "./text.js";

/**
 * The kinds of values that a key can have. Each schema's message is the end of the sentence "allowed is …", so that one
 * place can build every message; what else the loader has to know about a key is in its metadata.
 */
export interface Rule {
  /** The code when the value came from a flag; from a file or a variable it is `FLEET_CONFIG_INVALID`. */
  flagCode?: FleetErrorCode;
  /** Its value may be a secret that was put where its name belongs: never shown. */
  concealed?: boolean;
  /** A path: a relative one counts from the folder of the file that says it. */
  path?: "always" | "with-slash";
}

const VARIABLE = /^[A-Za-z_][A-Za-z0-9_]*$/;
const ALLOWED_VARIABLE = "the name of an environment variable (letters, digits, _), never a token or key itself";
const MAX_COUNT = 1_000_000;

/** A text that `read` turns into `T`; null from `read` refuses it. */
function text<T>(allowed: string, read: (text: string) => T | null, rule: Rule = {}) {
  return v.pipe(
    v.string(allowed),
    v.rawTransform<string, T>(({ dataset, addIssue, NEVER }) => {
      const value = read(dataset.value);
      if (value !== null) return value;
      addIssue({ message: allowed });
      return NEVER;
    }),
    v.metadata(rule as Record<string, unknown>),
  );
}

const isVariable = (name: string) => VARIABLE.test(name) && !holdsGitHubToken(name);

export const choice = <const T extends readonly [string, ...string[]]>(options: T) =>
  v.picklist(options, options.map((option) => `"${option}"`).join(" or "));

export const flag = () => v.boolean("true or false");

const whole = (min: number, max: number, rule: Rule) => {
  const allowed = `a whole number from ${min} to ${max}`;
  return v.pipe(
    v.number(allowed),
    v.integer(allowed),
    v.minValue(min, allowed),
    v.maxValue(max, allowed),
    v.metadata(rule as Record<string, unknown>),
  );
};

export const count = () => whole(1, MAX_COUNT, {});
/** How many, and none is allowed. */
export const countOrNone = () => whole(0, MAX_COUNT, {});
export const port = () => whole(1, LARGEST_PORT, { flagCode: "FLEET_PORT_INVALID" });

/** A share of a whole, above 0. */
export const share = () => {
  const allowed = "a number above 0 and at most 1";
  return v.pipe(v.number(allowed), v.gtValue(0, allowed), v.maxValue(1, allowed));
};

const span = (maxMs: number) =>
  text(allowedDuration(maxMs), (given) => readDuration(given, maxMs), { flagCode: "FLEET_DURATION_INVALID" });

/** How long something may live. */
export const age = () => span(LONGEST_MS);
/** What a timer waits for. */
export const wait = () => span(LONGEST_TIMER_MS);
/** How long a lease outlives a holder that died. */
export const leaseTtl = () => text(ALLOWED_LEASE_TTL, readLeaseTtl, { flagCode: "FLEET_DURATION_INVALID" });
export const size = () => text(ALLOWED_SIZE, readSize, { flagCode: "FLEET_SIZE_INVALID" });

/** A message has to fit in memory, as text, several times. */
export const frameSize = () =>
  text(
    'a size with a unit (kb, mb), such as "8mb", from 64kb to 256mb',
    (given) => {
      const bytes = readSize(given);
      return bytes !== null && bytes >= 64 * 1024 && bytes <= 256 * 1024 * 1024 ? bytes : null;
    },
    { flagCode: "FLEET_SIZE_INVALID" },
  );

export const isModelName = (name: string) => /^[\x21-\x7e]{1,200}$/.test(name);
export const modelName = () =>
  text('the name of a model, such as "gpt-5"', (name) => (isModelName(name) ? name : null));

const filled = (given: string) => (given.trim() === "" || given.includes("\0") ? null : given);
export const path = (kind: "always" | "with-slash") => text("the path of a file", filled, { path: kind });
export const command = () => text("a command for the shell", filled);

export const variable = () => text(ALLOWED_VARIABLE, (name) => (isVariable(name) ? name : null), { concealed: true });

/** A variable's name in which "{user}" stands for the user. */
export const userVariable = () =>
  text(
    `${ALLOWED_VARIABLE}; "{user}" is filled in`,
    (name) => (isVariable(name.replaceAll("{user}", "u")) ? name : null),
    { concealed: true },
  );

export const httpUrl = () =>
  text("an http:// or https:// URL without a user, a password or a key in it", (given) => {
    if (/[\s\p{Cc}]/u.test(given) || !URL.canParse(given)) return null;
    const url = new URL(given);
    if (url.protocol !== "http:" && url.protocol !== "https:") return null;
    return url.username === "" && url.password === "" && !holdsGitHubToken(given) ? given : null;
  });

/** A host's name stands in names of folders and keys, and is a DNS label in many set-ups. */
export const isHostName = (name: string) =>
  /^[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?$/.test(name) && !name.includes("..");
export const hostName = () =>
  text('1 to 63 lower-case letters, digits, dots and hyphens, such as "host-1"', (name) =>
    isHostName(name) ? name : null,
  );

/** How long a host counts as there without a heartbeat. Less would take a short stall for its death. */
const SHORTEST_HOST_TTL_MS = 3_000;
export const hostTtl = () =>
  text(
    'a duration with a unit (s, m), such as "15s", from 3s to 10m',
    (given) => {
      const ms = readDuration(given, 600_000);
      return ms !== null && ms >= SHORTEST_HOST_TTL_MS ? ms : null;
    },
    { flagCode: "FLEET_DURATION_INVALID" },
  );

/** Where to listen. Port 0 asks the system for a free one. */
export interface Address {
  host: string;
  port: number;
}

export const address = () =>
  text('host:port, such as "127.0.0.1:4300" or "[::1]:4300" (port 0: any free one)', parseAddress);

/** An address as it is written, or null for what is none. */
export function parseAddress(given: string): Address | null {
  const [, ipv6, name, digits = ""] = /^(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):(0|[1-9]\d{0,4})$/.exec(given) ?? [];
  const host = ipv6 ?? name;
  if (host === undefined || Number(digits) > LARGEST_PORT) return null;
  return URL.canParse(`http://${given}`) ? { host, port: Number(digits) } : null;
}

/** Which store, and where it is. `url` may hold a password: never print it without `redact()`. */
export type StoreConfig = { kind: "file" } | { kind: "redis"; url: string };

export const store = () =>
  text(`"file", or ${ALLOWED_REDIS_URL}`, (given): StoreConfig | null => {
    if (given === "file") return { kind: "file" };
    return readRedisUrl(given) === null ? null : { kind: "redis", url: given };
  });

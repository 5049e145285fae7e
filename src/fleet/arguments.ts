import { FleetError, option, quote } from "../base/errors.js";
import { EVENT_TYPES } from "../base/event.js";
import {
  IDEMPOTENCY_KEY,
  IDEMPOTENCY_KEY_ALLOWED,
  validateSessionId,
  validateTitle,
  validateUser,
} from "../base/ids.js";
import { USAGE_BY } from "../base/usage.js";
import { LONGEST_TIMER_MS, parseDuration } from "../base/values/measures.js";
import { parseLabel } from "../base/values/names.js";
import { isObject } from "../base/values/text.js";
import { type Address, parseAddress } from "../config/rules.js";
import { SCOPES } from "../identity/identity.js";
import type { InheritedListener } from "../runtime/launch/listen.js";

/*
 * The checks of arguments at run time, for callers in JavaScript. A wrong argument causes a usage error before anything
 * changes. An argument or option of a name has the same check in all methods (`CHECKS`). Each group of `Fleet` has a
 * table of its methods' arguments, which `groups/group.ts` applies.
 */

type Check = (value: unknown, name: string) => unknown;
type Checks = Readonly<Record<string, Check>>;

export type Argument = readonly [name: string, check: Check];

function wrong(name: string, must: string, value: unknown): FleetError {
  return new FleetError("FLEET_USAGE_INVALID", `${option(name)} must be ${must} (got ${show(value)}).`);
}

function show(value: unknown): string {
  if (typeof value === "string") return quote(value);
  if (Array.isArray(value)) return "a list";
  if (typeof value === "object" && value !== null) return "an object";
  return typeof value === "function" ? "a function" : String(value);
}

function kind<T>(must: string, is: (value: unknown) => value is T): (value: unknown, name: string) => T {
  return (value, name) => {
    if (is(value)) return value;
    throw wrong(name, must, value);
  };
}

const isText = (value: unknown): value is string => typeof value === "string";
const isWhole = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
const isListOf = <T>(value: unknown, is: (each: unknown) => each is T): value is T[] =>
  Array.isArray(value) && value.every(is);

export const text = kind("a string", isText);
export const texts = kind("a list of strings", (value) => isListOf(value, isText));
export const object = kind("an object", isObject);
const flag = kind("true or false", (value) => typeof value === "boolean");
const callback = kind("a function", (value) => typeof value === "function");
export const whole = kind("a whole number from 0", isWhole);
export const counts = kind(
  "an object with whole numbers from 0",
  (value): value is Record<string, number> => isObject(value) && Object.values(value).every(isWhole),
);
export const span = kind(
  'a duration such as "30s", or a number of milliseconds',
  (value) => isText(value) || typeof value === "number",
);
const moment = kind(
  'a Date, a time in ISO 8601, or how long ago, such as "10m"',
  (value) => isText(value) || value instanceof Date,
);
const signal = kind(
  "an AbortSignal",
  (value): value is AbortSignal => isObject(value) && typeof value.aborted === "boolean" && "addEventListener" in value,
);
const key = kind(
  `a text of ${IDEMPOTENCY_KEY_ALLOWED}`,
  (value): value is string => isText(value) && IDEMPOTENCY_KEY.test(value),
);

export function choice(values: readonly string[]): Check {
  return kind(`one of ${values.join(", ")}`, (value): value is string => values.includes(value as string));
}

export const sessionIds: Check = (value, name) =>
  texts(value, name).map((id) => validateSessionId(id, option("sessionIds")));
export const title: Check = (value, name) => validateTitle(text(value, name), option(name));
export const label: Check = (value, name) => parseLabel(text(value, name), option(name));

/** A session that a method of this fleet returned. */
export const openSession: Argument = [
  "session",
  kind(
    "a session of this fleet",
    (value): value is { sessionId: string } => isObject(value) && isText(value.sessionId),
  ),
];

export function orNull(check: Check): Check {
  return (value, name) => (value === null ? null : check(value, name));
}

export function readListener(value: unknown, name: string): Address | InheritedListener {
  const address = isText(value) ? parseAddress(value) : value;
  const isAddress = (at: unknown): at is Address => isObject(at) && isText(at.host) && Number.isInteger(at.port);
  const isInherited = (at: unknown): at is InheritedListener => isObject(at) && Number.isInteger(at.fd);
  if (isAddress(address) || isInherited(address)) return address;
  throw wrong(name, 'host:port, such as "127.0.0.1:4300" (port 0 is any free one), or an inherited descriptor', value);
}

function time(orZero: boolean): Check {
  return (value, name) => parseDuration(span(value, name), { name: option(name), maxMs: LONGEST_TIMER_MS, orZero });
}

/** The method reads these options in milliseconds: `wait: "30s"` becomes `waitMs: 30000`. */
const TIMES: Checks = { wait: time(true), timeout: time(false), drainTimeout: time(true) };

const CHECKS: Checks = {
  ...TIMES,
  ...all(text, "after", "answer", "cwd", "file", "gitHubToken", "host", "id", "model", "name", "output", "prompt"),
  ...all(text, "purpose", "reason", "requestId", "strategy", "text"),
  ...all(texts, "availableTools", "ids", "members", "texts"),
  ...all(flag, "detached", "dryRun", "ephemeral", "follow", "force", "ignoreNotFound", "interactive", "needsModel"),
  ...all(flag, "park", "previous"),
  ...all(callback, "log", "onDelta", "onEvent", "onProgress", "onRequest", "onWait", "work"),
  ...all(object, "at", "config", "env", "expected", "lease", "probes", "session", "token"),
  ...all(whole, "lines", "max", "maxUnavailable", "turns"),
  ...all(span, "overlap", "ttl"),
  ...all(signal, "askUntil", "signal"),
  ...all(readListener, "http", "listen"),
  attachments: kind("a list of objects", (value) => isListOf(value, isObject)),
  by: choice(USAGE_BY),
  decision: choice(["approve", "deny"]),
  key,
  label,
  scopes: kind(
    `a list of at least one of ${SCOPES.join(", ")}`,
    (value): value is string[] =>
      Array.isArray(value) && value.length > 0 && value.every((each) => SCOPES.includes(each)),
  ),
  sessionId: (value, name) => validateSessionId(text(value, name)),
  sessionIds,
  since: moment,
  steal: (value, name) => read(value, name, { required: ["reason"] }),
  title,
  type: choice(EVENT_TYPES),
  user: (value, name) => validateUser(text(value, name)),
  users: (value, name) => texts(value, name).map((user) => validateUser(user)),
  via: choice(["command", "library", "door", "http", "fleet"]),
};

function all(check: Check, ...names: string[]): Checks {
  return Object.fromEntries(names.map((name) => [name, check]));
}

interface Expected {
  required?: readonly string[];
  /** The checks of options that have another meaning in this method than in others. */
  special?: Checks;
}

/** Checks an object with options. Options without a check pass, because they are for the SDK. */
function read(value: unknown, name: string, { required = [], special = {} }: Expected): Record<string, unknown> {
  const given = object(value, name);
  const result: Record<string, unknown> = {};
  for (const field of new Set([...required, ...Object.keys(given)])) {
    const before = given[field];
    const check = special[field] ?? (Object.hasOwn(CHECKS, field) ? CHECKS[field] : undefined);
    const after =
      check === undefined || (before === undefined && !required.includes(field)) ? before : check(before, field);
    result[field in TIMES && !(field in special) ? `${field}Ms` : field] = after;
  }
  return result;
}

/** The argument with this name. `options` may be left out. */
export function named(name: string): Argument {
  return name === "options" ? options() : [name, CHECKS[name] as Check];
}

/** The last argument of most methods: an object with options, which the caller may leave out. */
export function options(special: Checks = {}): Argument {
  return ["options", (value, name) => (value === undefined ? undefined : read(value, name, { special }))];
}

/** An object with options, of which these must be given. */
export function needs(required: readonly string[], special: Checks = {}): Argument {
  return ["options", (value, name) => read(value, name, { required, special })];
}

/** Checks an object of which exactly one field must be given. */
export function oneOf(name: string, fields: readonly string[], special: Checks = {}): Argument {
  return [
    name,
    (value) => {
      const result = read(value, name, { special });
      if (fields.filter((field) => result[field] !== undefined).length === 1) return result;
      throw wrong(name, `an object with either ${fields.map((field) => option(field)).join(" or ")}`, value);
    },
  ];
}

/** Checks the options of `Fleet.open`. The content of `config` is checked when the configuration is loaded. */
export function readFleetOptions(value: unknown): void {
  read(value, "options", {});
}

import { FleetError, option, type Suggestion } from "../base/errors.js";
import { EVENT_TYPES } from "../base/event.js";
import {
  IDEMPOTENCY_KEY,
  IDEMPOTENCY_KEY_ALLOWED,
  validateSessionId,
  validateTitle,
  validateUser,
} from "../base/ids.js";
import { USAGE_BY } from "../base/usage.js";
import { LONGEST_TIMER_MS, parseDuration, parseWhole } from "../base/values/measures.js";
import { parseLabel } from "../base/values/names.js";
import { blankFault, isObject, oneOf, quote, wholeNumberFault } from "../base/values/text.js";
import { type Address, ALLOWED_MODEL, modelFault, parseAddress } from "../config/rules.js";
import { SCOPES } from "../identity/identity.js";
import type { InheritedListener } from "../runtime/launch/listen.js";

/*
 * The checks of the values that callers give to the fleet. A field of a name has the same check in all operations, and
 * at every entry point: `groups/group.ts` applies them to the arguments of the library's methods, so also to what the
 * routes of the HTTP API pass on, and the flags of the command line call them by themselves. A wrong value causes a
 * usage error before anything changes.
 */

/** @param name the name of the value in the error's message */
type Check<T = unknown> = (value: unknown, name: string) => T;
type Checks = Readonly<Record<string, Check>>;

export type Argument = readonly [name: string, check: Check];

interface Wrong {
  /** The fault, as in "which is empty". */
  fault?: string | null;
  advice?: Suggestion;
}

function wrongValue(name: string, value: unknown, allowed: string, { fault = null, advice }: Wrong = {}): FleetError {
  const why = fault === null ? "" : `, ${fault}`;
  const message = value === undefined ? `${name} is missing.` : `${name} is ${shown(value)}${why}. Allowed: ${allowed}`;
  return new FleetError("FLEET_USAGE_INVALID", message, { suggestions: advice === undefined ? [] : [advice] });
}

/** A function has no form in JSON. */
function shown(value: unknown): string {
  return quote(typeof value === "function" ? "a function" : value);
}

function kind<T>(allowed: string, is: (value: unknown) => value is T): Check<T> {
  return (value, name) => {
    if (is(value)) return value;
    throw wrongValue(name, value, allowed);
  };
}

function textWithout(faultOf: (text: string) => string | null, allowed: string, advice: Suggestion): Check<string> {
  return (value, name) => {
    const fault = faultOf(text(value, name));
    if (fault === null) return value as string;
    throw wrongValue(name, value, allowed, { fault, advice });
  };
}

const isText = (value: unknown): value is string => typeof value === "string";
const isWhole = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
const isListOf = <T>(value: unknown, is: (each: unknown) => each is T): value is T[] =>
  Array.isArray(value) && value.every(is);

export const text = kind("a string", isText);
export const texts = kind("a list of strings", (value) => isListOf(value, isText));
export const object = kind("an object", isObject);
export const flag = kind("true or false", (value) => typeof value === "boolean");
const callback = kind("a function", (value) => typeof value === "function");
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
const someTexts = kind(
  `a list of at least one of ${oneOf(SCOPES)}`,
  (value): value is string[] => isListOf(value, isText) && value.length > 0,
);
const scope = choice(SCOPES);
const scopes: Check = (value, name) => someTexts(value, name).map((each) => scope(each, name));

/** A number of lines, rows or turns. @param min the smallest allowed number */
export function count(min: number, max = 1_000_000): Check<number> {
  return (value, name) => {
    const number = parseWhole(String(value), name, [min, max]);
    if (typeof value === "number") return number;
    throw wrongValue(name, value, `a whole number from ${min} to ${max}`);
  };
}

export function choice(values: readonly string[]): Check {
  return kind(oneOf(values), (value): value is string => values.includes(value as string));
}

const LARGEST = [1, Number.MAX_SAFE_INTEGER] as const;

/** How much a user may have: a whole number, `unlimited` or null, or `default`. */
export const limit: Check<number | "unlimited" | "default" | null> = (value, name) => {
  if (value === "unlimited" || value === "default" || value === null) return value;
  const fault = wholeNumberFault(String(value), LARGEST);
  if (fault === null && typeof value === "number") return value;
  throw wrongValue(name, value, 'a whole number from 1, "unlimited" or "default"', {
    fault,
    advice: "Write a number, such as 10.",
  });
};

export const prompt = textWithout(blankFault, "a text that is not blank", "Write a text.");
export const model = textWithout(modelFault, ALLOWED_MODEL, "Write the name of a model, such as gpt-5.");
export const sessionIds: Check = (value, name) => texts(value, name).map((id) => validateSessionId(id, name));
export const title: Check = (value, name) => validateTitle(text(value, name), name);
export const label: Check = (value, name) => parseLabel(text(value, name), name);

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
  throw wrongValue(
    name,
    value,
    'host:port, such as "127.0.0.1:4300" (port 0 is any free one), or an inherited descriptor',
  );
}

function time(orZero: boolean): Check<number> {
  return (value, name) => parseDuration(span(value, name), { name, maxMs: LONGEST_TIMER_MS, orZero });
}

/** The method reads these options in milliseconds: `wait: "30s"` becomes `waitMs: 30000`. */
export const TIMES = { wait: time(true), timeout: time(false), drainTimeout: time(true) };

const CHECKS: Checks = {
  ...TIMES,
  ...all(text, "after", "answer", "cwd", "file", "gitHubToken", "host", "id", "name", "output"),
  ...all(text, "reason", "requestId", "strategy", "text"),
  ...all(texts, "availableTools", "ids", "members", "texts"),
  ...all(flag, "detached", "dryRun", "ephemeral", "follow", "force", "ignoreNotFound", "interactive", "needsModel"),
  ...all(flag, "park", "previous"),
  ...all(callback, "log", "onDelta", "onEvent", "onProgress", "onRequest", "onWait", "work"),
  ...all(object, "at", "config", "env", "expected", "lease", "probes", "session", "token"),
  ...all(label, "label", "purpose"),
  lines: count(0),
  max: count(0),
  maxUnavailable: count(1),
  model,
  prompt,
  turns: count(0),
  ...all(span, "overlap", "ttl"),
  ...all(signal, "askUntil", "signal"),
  ...all(readListener, "http", "listen"),
  attachments: kind("a list of objects", (value) => isListOf(value, isObject)),
  by: choice(USAGE_BY),
  decision: choice(["approve", "deny"]),
  key,
  scopes,
  sessionId: (value, name) => validateSessionId(text(value, name), name),
  sessionIds,
  since: moment,
  steal: (value, name) => read(value, name, { required: ["reason"] }),
  title,
  type: choice(EVENT_TYPES),
  user: (value, name) => validateUser(text(value, name), name),
  users: (value, name) => texts(value, name).map((user) => validateUser(user, name)),
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
      check === undefined || (before === undefined && !required.includes(field))
        ? before
        : check(before, option(field));
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
export function exactlyOne(name: string, fields: readonly string[], special: Checks = {}): Argument {
  return [
    name,
    (value) => {
      const result = read(value, name, { special });
      if (fields.filter((field) => result[field] !== undefined).length === 1) return result;
      throw wrongValue(
        option(name),
        value,
        `an object with either ${fields.map((field) => option(field)).join(" or ")}`,
      );
    },
  ];
}

/** Checks the options of `Fleet.open`. The content of `config` is checked when the configuration is loaded. */
export function readFleetOptions(value: unknown): void {
  read(value, "options", {});
}

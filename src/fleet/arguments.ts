import { FleetError, option, quote } from "../base/errors.js";
import { IDEMPOTENCY_KEY, IDEMPOTENCY_KEY_ALLOWED, validateSessionId, validateUser } from "../base/ids.js";
import { type DurationBounds, LONGEST_TIMER_MS, parseDuration } from "../base/values/measures.js";
import { isObject } from "../base/values/text.js";
import { type Address, parseAddress } from "../config/rules.js";
import type { InheritedListener } from "../runtime/launch/listen.js";

/*
 * The checks of arguments at run time, for callers in JavaScript. A wrong argument causes a usage error before anything
 * changes. Each group of `Fleet` has a table of its methods' arguments, which `groups/group.ts` applies. A check
 * returns the value that the method reads. For example, `wait: "30s"` becomes `waitMs: 30000`.
 */

type Check = (value: unknown, name: string) => unknown;

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

export const text = kind("a string", isText);
export const texts = kind(
  "a list of strings",
  (value): value is string[] => Array.isArray(value) && value.every(isText),
);
export const objects = kind(
  "a list of objects",
  (value): value is object[] => Array.isArray(value) && value.every(isObject),
);
export const object = kind("an object", isObject);
export const flag = kind("true or false", (value): value is boolean => typeof value === "boolean");
export function choice(values: readonly string[]): Check {
  return kind(`one of ${values.join(", ")}`, (value): value is string => values.includes(value as string));
}
/** Checks a list that has at least one value, and only values from `values`. */
export function someOf(values: readonly string[]): Check {
  return kind(`a list of at least one of ${values.join(", ")}`, (value): value is string[] => {
    return Array.isArray(value) && value.length > 0 && value.every((each) => values.includes(each as string));
  });
}
export const callback = kind("a function", (value): value is () => unknown => typeof value === "function");
export const whole = kind(
  "a whole number from 0",
  (value): value is number => Number.isSafeInteger(value) && (value as number) >= 0,
);
export const counts = kind(
  "an object with whole numbers from 0",
  (value): value is Record<string, number> =>
    isObject(value) && Object.values(value).every((each) => Number.isSafeInteger(each) && (each as number) >= 0),
);
export const span = kind(
  'a duration such as "30s", or a number of milliseconds',
  (value): value is string | number => isText(value) || typeof value === "number",
);
export const moment = kind(
  'a Date, a time in ISO 8601, or how long ago, such as "10m"',
  (value): value is string | Date => isText(value) || value instanceof Date,
);
const signal = kind(
  "an AbortSignal",
  (value): value is AbortSignal => isObject(value) && typeof value.aborted === "boolean" && "addEventListener" in value,
);
export const userId: Check = (value, name) => validateUser(text(value, name));
export const userIds: Check = (value, name) => texts(value, name).map((user) => validateUser(user));
export const sessionId: Check = (value, name) => validateSessionId(text(value, name));
export const sessionIds: Check = (value, name) =>
  texts(value, name).map((id) => validateSessionId(id, option("sessionIds")));
export const session: Check = (value, name) => {
  if (isObject(value) && isText(value.sessionId)) return value;
  throw wrong(name, "a session of this fleet", value);
};

export const idempotencyKey = kind(
  `a text of ${IDEMPOTENCY_KEY_ALLOWED}`,
  (value): value is string => isText(value) && IDEMPOTENCY_KEY.test(value),
);

export function timer(bounds: Pick<DurationBounds, "orZero">): Check {
  return (value, name) => parseDuration(span(value, name), { name: option(name), maxMs: LONGEST_TIMER_MS, ...bounds });
}
export const wait = timer({ orZero: true });

export function readListener(value: unknown, name: string): Address | InheritedListener {
  const address = isText(value) ? parseAddress(value) : value;
  const isAddress = (at: unknown): at is Address => isObject(at) && isText(at.host) && Number.isInteger(at.port);
  const isInherited = (at: unknown): at is InheritedListener => isObject(at) && Number.isInteger(at.fd);
  if (isAddress(address) || isInherited(address)) return address;
  throw wrong(name, 'host:port, such as "127.0.0.1:4300" (port 0 is any free one), or an inherited descriptor', value);
}

export interface Field {
  check: Check;
  required?: true;
  /** The name under which the method reads the option, if the caller uses another name. */
  as?: string;
}

/** Checks an object with options. Options that are not in `fields` pass unchecked, because they are for the SDK. */
export function options(fields: Readonly<Record<string, Field>>): Check {
  return (value, name) => {
    const given = object(value, name);
    const result: Record<string, unknown> = { ...given };
    for (const [field, { check, required, as }] of Object.entries(fields)) {
      const before = given[field];
      if (before === undefined && required === undefined) continue;
      const after = check(before, field);
      if (as !== undefined) delete result[field];
      result[as ?? field] = after;
    }
    return result;
  };
}

/** The last argument of most methods: an object with options, which the caller may leave out. */
export function optional(fields: Readonly<Record<string, Field>>): Argument {
  const read = options(fields);
  return ["options", (value, name) => (value === undefined ? undefined : read(value, name))];
}

/** Checks options of which exactly one must be given. */
export function oneOf(fields: Readonly<Record<string, Field>>): Check {
  const read = options(fields);
  return (value, name) => {
    const result = read(value, name) as Record<string, unknown>;
    const names = Object.keys(fields);
    if (names.filter((field) => result[field] !== undefined).length === 1) return result;
    throw wrong(name, `an object with either ${names.map((field) => option(field)).join(" or ")}`, value);
  };
}

export const required = (check: Check): Field => ({ check, required: true });
export const SIGNAL = { signal: { check: signal } };
export const USER = { user: { check: userId } };
export const OWN_USER = { user: required(userId) };
export const WAIT = { wait: { check: wait, as: "waitMs" } };
export const TIMEOUT = { timeout: { check: timer({}), as: "timeoutMs" } };
export const DRAIN_TIMEOUT = { drainTimeout: { check: wait, as: "drainTimeoutMs" } };
export const PROGRESS = { onProgress: { check: callback } };
export const STOP = { ...DRAIN_TIMEOUT, force: { check: flag }, ...PROGRESS, ...SIGNAL };
export const LISTEN = { listen: { check: readListener } };
export const HTTP = { http: { check: readListener } };

export const user: Argument = ["user", userId];
export const ids: Argument = ["ids", texts];

/** Checks the options of `Fleet.open`. The content of `config` is checked when the configuration is loaded. */
export const readFleetOptions: Check = options({
  config: { check: object },
  env: { check: object },
  cwd: { check: text },
  via: { check: choice(["command", "library", "door", "http", "fleet"]) },
});

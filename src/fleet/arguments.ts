import { type Address, parseAddress } from "../config/rules.js";
import { type DurationBounds, LONGEST_TIMER_MS, parseDuration } from "../config/values/duration.js";
import { FleetError, option, quote } from "../errors.js";
import type { InheritedListener } from "../runtime/launch/listen.js";
import { PendingReply } from "../sessions/use/reply.js";

/**
 * Checks the arguments of `Fleet`'s methods at run time, because the compiler checks them only for callers in TypeScript.
 * A caller in JavaScript gets a usage error before anything changes. A check returns the value in the form that the method
 * reads: durations become milliseconds, and older option names become the current ones.
 */

/**
 * @throws FleetError `FLEET_USAGE_INVALID` when the value has the wrong type; `FLEET_DURATION_INVALID` when a duration
 * is malformed or out of bounds.
 */
type Check = (value: unknown, name: string) => unknown;

/** An argument of a method. */
type Argument = readonly [name: string, check: Check];

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

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const isText = (value: unknown): value is string => typeof value === "string";

const text = kind("a string", isText);
const texts = kind("a list of strings", (value): value is string[] => Array.isArray(value) && value.every(isText));
const object = kind("an object", isObject);
const flag = kind("true or false", (value): value is boolean => typeof value === "boolean");
const callback = kind("a function", (value): value is () => unknown => typeof value === "function");
const whole = kind(
  "a whole number from 0",
  (value): value is number => Number.isSafeInteger(value) && (value as number) >= 0,
);
const milliseconds = kind(
  "a number of milliseconds from 0",
  (value): value is number => typeof value === "number" && value >= 0,
);
const span = kind(
  'a duration such as "30s", or a number of milliseconds',
  (value): value is string | number => isText(value) || typeof value === "number",
);
const signal = kind(
  "an AbortSignal",
  (value): value is AbortSignal => isObject(value) && typeof value.aborted === "boolean" && "addEventListener" in value,
);

/** Checks a duration for a timer, and converts it to milliseconds. */
function timer(bounds: Pick<DurationBounds, "orZero">): Check {
  return (value, name) => parseDuration(span(value, name), { name: option(name), maxMs: LONGEST_TIMER_MS, ...bounds });
}
const wait = timer({ orZero: true });

/**
 * Reads the address or descriptor to listen on.
 *
 * @throws FleetError `FLEET_USAGE_INVALID` when it is neither.
 */
export function readListener(value: unknown, name: string): Address | InheritedListener {
  const address = isText(value) ? parseAddress(value) : value;
  const isAddress = (at: unknown): at is Address => isObject(at) && isText(at.host) && Number.isInteger(at.port);
  const isInherited = (at: unknown): at is InheritedListener => isObject(at) && Number.isInteger(at.fd);
  if (isAddress(address) || isInherited(address)) return address;
  throw wrong(name, 'host:port, such as "127.0.0.1:4300" (port 0 is any free one), or an inherited descriptor', value);
}

const maybe =
  (check: Check): Check =>
  (value, name) =>
    value === undefined ? undefined : check(value, name);

interface Field {
  check: Check;
  required?: true;
  /** The name under which the method reads the option, if it is not the name that the caller uses. */
  as?: string;
}

/** Checks an object with options. Options that are not in `fields` pass unchecked, because they are for the SDK. */
function options(fields: Readonly<Record<string, Field>>): Check {
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

/** Checks options of which exactly one must be given. */
function oneOf(fields: Readonly<Record<string, Field>>): Check {
  const read = options(fields);
  return (value, name) => {
    const result = read(value, name) as Record<string, unknown>;
    const names = Object.keys(fields);
    if (names.filter((field) => result[field] !== undefined).length === 1) return result;
    throw wrong(name, `an object with either ${names.map((field) => option(field)).join(" or ")}`, value);
  };
}

const required = (check: Check): Field => ({ check, required: true });
const USER = required(text);
const SIGNAL = { check: signal };
/** `waitMs` is the older name of `wait`. If both are given, `wait` wins because it comes last. */
const WAIT = { waitMs: { check: milliseconds }, wait: { check: wait, as: "waitMs" } };
const DRAIN_TIMEOUT = {
  drainTimeoutMs: { check: milliseconds },
  drainTimeout: { check: wait, as: "drainTimeoutMs" },
};

const SPAWN = options({ token: { check: object }, cwd: { check: text }, ...WAIT });
const STOP = options({ ...DRAIN_TIMEOUT, force: { check: flag }, signal: SIGNAL });
const SEND = {
  timeoutMs: { check: milliseconds },
  timeout: { check: timer({}), as: "timeoutMs" },
  ...WAIT,
  signal: SIGNAL,
  onDelta: { check: callback },
  onWait: { check: callback },
  lease: { check: object },
};
const LOCK = options({
  user: USER,
  ttl: { check: span },
  wait: { check: span },
  steal: { check: options({ reason: required(text) }) },
  detached: { check: flag },
  onWait: { check: callback },
  signal: SIGNAL,
});
const SESSION: Check = (value, name) => {
  if (isObject(value) && isText(value.sessionId)) return value;
  throw wrong(name, "a session of this fleet", value);
};

const user: Argument = ["user", text];
const optionalUser: Argument = ["user", maybe(text)];
const sessionId: Argument = ["sessionId", text];
const ids: Argument = ["ids", texts];
const spawnOptions: Argument = ["options", maybe(SPAWN)];
const stopOptions: Argument = ["options", maybe(STOP)];

/** The arguments of each method. A method without arguments has an empty list. */
export const ARGUMENTS = {
  spawn: [user, spawnOptions],
  spawnMany: [["users", texts], spawnOptions],
  spawnShared: [spawnOptions],
  servers: [],
  hosts: [],
  hostNames: [],
  overview: [],
  recordedServers: [],
  recordedSessions: [],
  repairRegistry: [],
  repairSessionRecords: [],
  brokenServers: [],
  launchIds: [],
  poolState: [],
  supervisorPid: [],
  heldPorts: [],
  server: [["id", text]],
  logEnd: [
    ["id", text],
    ["lines", whole],
  ],
  followLog: [
    ["id", text],
    ["at", object],
    ["signal", signal],
  ],
  serverFor: [user, spawnOptions],
  route: [user, ["options", maybe(options({ strategy: { check: text } }))]],
  planRebalance: [],
  rebalance: [["options", maybe(options(WAIT))]],
  serverOf: [user],
  stop: [ids, stopOptions],
  restart: [ids, stopOptions],
  restartRolling: [
    ids,
    ["options", maybe(options({ ...DRAIN_TIMEOUT, maxUnavailable: { check: whole }, signal: SIGNAL }))],
  ],
  drain: [
    [
      "options",
      maybe(
        options({
          timeout: { check: wait, as: "drainTimeoutMs" },
          ...DRAIN_TIMEOUT,
          force: { check: flag },
          signal: SIGNAL,
        }),
      ),
    ],
  ],
  undrain: [],
  supervise: [["options", options({ log: required(callback), listen: { check: readListener }, signal: SIGNAL })]],
  connectInfo: [user],
  clientForUser: [user, ["options", maybe(options({ gitHubToken: { check: text }, signal: SIGNAL }))]],
  releaseUser: [user, stopOptions],
  createSession: [
    [
      "options",
      options({
        user: USER,
        sessionId: { check: text },
        purpose: { check: text },
        model: { check: text },
        ttl: { check: span },
        members: { check: texts },
        ephemeral: { check: flag },
        ...WAIT,
        signal: SIGNAL,
      }),
    ],
  ],
  resumeSession: [sessionId, ["options", options({ user: USER, ...WAIT, signal: SIGNAL })]],
  send: [
    ["session", SESSION],
    ["prompt", text],
    ["options", maybe(options(SEND))],
  ],
  exchange: [sessionId, ["prompt", text], ["options", options({ user: USER, session: { check: object }, ...SEND })]],
  leaveSession: [
    ["session", SESSION],
    ["options", maybe(options({ park: { check: flag } }))],
  ],
  evict: [["what", oneOf({ ids: { check: texts }, max: { check: whole } })]],
  sessions: [optionalUser],
  sessionOf: [sessionId, user],
  deleteSessions: [
    ["sessionIds", texts],
    optionalUser,
    ["options", maybe(options({ ignoreNotFound: { check: flag } }))],
  ],
  withSessionLock: [sessionId, ["options", LOCK], ["work", callback]],
  lockSession: [sessionId, ["options", LOCK]],
  unlockSession: [sessionId, ["token", text]],
  leaseOf: [sessionId, optionalUser],
  gc: [
    [
      "options",
      maybe(options({ ttl: { check: span }, dryRun: { check: flag }, user: { check: text }, signal: SIGNAL })),
    ],
  ],
  issueToken: [user, ["options", maybe(options({ ttl: { check: span } }))]],
  tokens: [optionalUser],
  revokeTokens: [["which", oneOf({ ids: { check: texts }, user: { check: text } })]],
  openFrontDoor: [
    [
      "options",
      maybe(
        options({
          listen: { check: readListener },
          onRequest: { check: callback },
          onEvent: { check: callback },
          signal: SIGNAL,
        }),
      ),
    ],
  ],
} as const satisfies Readonly<Record<string, readonly Argument[]>>;

type Method = (this: object, ...args: unknown[]) => unknown;

/**
 * Makes each declared method check its arguments, and refuse calls after the object is closed. Doing this in one place
 * ensures that no method omits it.
 *
 * @param assertOpen throws if the object is closed
 */
export function guardMethods<T extends object>(
  prototype: T,
  declared: Readonly<Record<string, readonly Argument[]>>,
  assertOpen: (of: T) => void,
): void {
  for (const [name, parameters] of Object.entries(declared)) {
    const method = (prototype as Record<string, unknown>)[name] as Method;
    const read = (of: object, given: readonly unknown[]) => {
      assertOpen(of as T);
      return parameters.map(([parameter, check], at) => check(given[at], parameter));
    };
    Object.defineProperty(prototype, name, { value: guarded(name, method, read), writable: true, configurable: true });
  }
}

/**
 * Wraps a method so that a failed check is reported in the same way as the method's result: by its iterator, its
 * {@link PendingReply} or its promise.
 */
function guarded(name: string, method: Method, read: (of: object, given: readonly unknown[]) => unknown[]): Method {
  if (name === "followLog") {
    return async function* (...given) {
      yield* method.apply(this, read(this, given)) as AsyncIterable<unknown>;
    };
  }
  if (name === "send" || name === "exchange") {
    return function (...given) {
      try {
        return method.apply(this, read(this, given));
      } catch (error) {
        return new PendingReply(async () => await Promise.reject(error));
      }
    };
  }
  return async function (...given) {
    return await method.apply(this, read(this, given));
  };
}

/** Checks the options of `Fleet.open`. The content of `config` is checked when the configuration is loaded. */
export const readFleetOptions: Check = options({
  config: { check: object },
  env: { check: object },
  cwd: { check: text },
});

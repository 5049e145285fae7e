/**
 * The catalogue of all errors. A code is API: scripts match on it, so a code is never renamed.
 *
 * `exit` is the command's exit code in the public contract: 1 a bug, 2 usage, 3 configuration, 4 not found (or not
 * yours), 5 conflict or locked, 6 capacity or time-out, 7 a backend is not available, 8 a drain had to cut something.
 *
 * `retryable` means that the same call may succeed soon, although the caller changes nothing.
 */
export const ERRORS = {
  FLEET_INTERNAL: { exit: 1 },
  FLEET_USAGE_INVALID: { exit: 2 },
  FLEET_CLOSED: { exit: 2 },
  FLEET_USER_INVALID: { exit: 2 },
  FLEET_SESSION_ID_INVALID: { exit: 2 },
  FLEET_DURATION_INVALID: { exit: 2 },
  FLEET_SIZE_INVALID: { exit: 2 },
  FLEET_PORT_INVALID: { exit: 2 },
  FLEET_CONFIG_INVALID: { exit: 3 },
  FLEET_CONFIG_KEY_UNKNOWN: { exit: 3 },
  FLEET_CONFIG_UNTRUSTED: { exit: 3 },
  FLEET_NODE_UNSUPPORTED: { exit: 3 },
  FLEET_PLATFORM_UNSUPPORTED: { exit: 3 },
  FLEET_RUNTIME_MISSING: { exit: 3 },
  FLEET_RUNTIME_UNUSABLE: { exit: 3 },
  FLEET_RUNTIME_TOO_OLD: { exit: 3 },
  FLEET_RUNTIME_TOO_NEW: { exit: 3 },
  FLEET_PROTOCOL_UNSUPPORTED: { exit: 3 },
  FLEET_STATE_UNSAFE: { exit: 3 },
  FLEET_STATE_NEWER: { exit: 3 },
  FLEET_ADDRESS_UNUSABLE: { exit: 3 },
  FLEET_STORE_UNSAFE: { exit: 3 },
  FLEET_STORE_DENIED: { exit: 3 },
  FLEET_TOKEN_UNAVAILABLE: { exit: 3 },
  FLEET_TOKEN_INVALID: { exit: 3 },
  FLEET_MODEL_UNCONFIGURED: { exit: 3 },
  FLEET_METHOD_DENIED: { exit: 5 },
  FLEET_METHOD_UNKNOWN: { exit: 5 },
  FLEET_TOKEN_REFUSED: { exit: 5 },
  FLEET_DOOR_DRAINING: { exit: 5, retryable: true },
  FLEET_SERVER_NOT_FOUND: { exit: 4 },
  FLEET_SESSION_NOT_FOUND: { exit: 4 },
  FLEET_SESSION_EXISTS: { exit: 5 },
  FLEET_SESSION_LOST: { exit: 5 },
  FLEET_SESSION_BUSY: { exit: 5, retryable: true },
  FLEET_SESSION_AMBIGUOUS: { exit: 5 },
  FLEET_SESSION_LOCKED: { exit: 5, retryable: true },
  FLEET_LEASE_LOST: { exit: 5, retryable: true },
  FLEET_ADDRESS_TAKEN: { exit: 5 },
  FLEET_SERVER_CONFLICT: { exit: 5 },
  FLEET_STORE_OCCUPIED: { exit: 5 },
  FLEET_SERVER_DRAINING: { exit: 5, retryable: true },
  FLEET_POOL_DRAINING: { exit: 5, retryable: true },
  FLEET_SUPERVISOR_RUNNING: { exit: 5 },
  FLEET_HOST_TAKEN: { exit: 5 },
  FLEET_SESSION_MOVED: { exit: 5, retryable: true },
  FLEET_PORTS_EXHAUSTED: { exit: 6, retryable: true },
  FLEET_SERVER_START_TIMEOUT: { exit: 6, retryable: true },
  FLEET_SESSIONS_EXHAUSTED: { exit: 6, retryable: true },
  FLEET_REQUESTS_EXHAUSTED: { exit: 6, retryable: true },
  FLEET_LIMIT_REACHED: { exit: 6, retryable: true },
  FLEET_TURN_TIMEOUT: { exit: 6 },
  FLEET_STATE_BUSY: { exit: 6, retryable: true },
  FLEET_STATE_UNWRITABLE: { exit: 7 },
  FLEET_STATE_CORRUPT: { exit: 7 },
  FLEET_PROCESSES_UNREADABLE: { exit: 7, retryable: true },
  FLEET_STATE_LOST: { exit: 7 },
  FLEET_HOST_AWAY: { exit: 7, retryable: true },
  FLEET_SESSION_STRANDED: { exit: 7 },
  FLEET_STORAGE_UNUSABLE: { exit: 7 },
  FLEET_STORE_UNAVAILABLE: { exit: 7, retryable: true },
  FLEET_SERVER_EXITED: { exit: 7 },
  FLEET_SERVER_LOST: { exit: 7, retryable: true },
  FLEET_SERVER_UNREACHABLE: { exit: 7, retryable: true },
  FLEET_TURN_FAILED: { exit: 7 },
  FLEET_TURN_CUT: { exit: 8 },
} as const satisfies Record<string, { exit: number; retryable?: boolean }>;

export type FleetErrorCode = keyof typeof ERRORS;

export interface FleetErrorOptions {
  /** The next steps. Each is a command or a sentence that the user can follow as it stands. */
  suggestions?: readonly string[];
  /** The underlying error, kept for logs. */
  cause?: unknown;
  /** Work that was done although the call failed, under the names that it would have in the result. */
  outcome?: Readonly<Record<string, unknown>>;
  /** The limit that was reached, under its name below `limits`: `connections`, `total.connections`. */
  limit?: string;
  /** The number of milliseconds after which the same call may succeed, if it is known. */
  retryAfterMs?: number;
}

/** These characters enclose an option in a message, and separate its name from its value. `quote()` escapes both. */
const MARK = "\u0001";
const SEPARATOR = "\u0002";

/** Names an option of the failed call in a message. `value` is an example value, or empty. */
export type OptionNaming = (name: string, value: string) => string;

/**
 * Marks an option of the call in the message or a suggestion of a {@link FleetError}. The same error reaches programs,
 * which set options, and users of the command, who set flags. A program reads `wait: "30s"`, and `cli/report.ts` shows
 * `--wait 30s`.
 */
export function option(name: string, value = ""): string {
  return `${MARK}${name}${SEPARATOR}${value}${MARK}`;
}

function nameOptions(text: string, naming: OptionNaming): string {
  const parts = text.split(MARK).map((part, at) => {
    const [name = "", value = ""] = part.split(SEPARATOR);
    return at % 2 === 0 ? part : naming(name, value);
  });
  return parts.join("");
}

const asOption: OptionNaming = (name, value) => (value === "" ? name : `${name}: ${JSON.stringify(value)}`);

/** An error that is part of the public contract. It has a stable code, a message for people, and the next steps. */
export class FleetError extends Error {
  override readonly name = "FleetError";
  readonly code: FleetErrorCode;
  readonly suggestions: readonly string[];
  readonly #text: { message: string; suggestions: readonly string[] };
  /** Work that was done although the call failed, such as `{ deleted: ["a"] }`; empty if there is none. */
  readonly outcome: Readonly<Record<string, unknown>>;
  /** The limit that was reached; undefined for other errors. */
  readonly limit: string | undefined;
  /** The number of milliseconds after which the same call may succeed; undefined if it is not known. */
  readonly retryAfterMs: number | undefined;

  constructor(code: FleetErrorCode, message: string, options: FleetErrorOptions = {}) {
    super(nameOptions(message, asOption), options.cause === undefined ? {} : { cause: options.cause });
    this.code = code;
    this.#text = { message, suggestions: options.suggestions ?? [] };
    this.suggestions = this.#text.suggestions.map((text) => nameOptions(text, asOption));
    this.outcome = options.outcome ?? {};
    this.limit = options.limit;
    this.retryAfterMs = options.retryAfterMs;
  }

  /** Returns the message and the suggestions, with options named by `naming`. */
  describe(naming: OptionNaming): { message: string; suggestions: string[] } {
    const { message, suggestions } = this.#text;
    return {
      message: nameOptions(message, naming),
      suggestions: suggestions.map((text) => nameOptions(text, naming)),
    };
  }

  /** The exit code of the process in the public contract. */
  get exit(): number {
    return ERRORS[this.code].exit;
  }

  /** Whether the same call may succeed soon, although the caller changes nothing. */
  get retryable(): boolean {
    return "retryable" in ERRORS[this.code];
  }
}

/** Whether `error` is a {@link FleetError}. With `code`, it must have that code. */
export function isFleetError(error: unknown, code?: FleetErrorCode): error is FleetError {
  return error instanceof FleetError && (code === undefined || error.code === code);
}

/** Returns the `code` of a Node system error (`ENOENT`, …), or undefined for any other error. */
export function systemCode(error: unknown): string | undefined {
  if (!(error instanceof Error) || !("code" in error)) return undefined;
  return typeof error.code === "string" ? error.code : undefined;
}

/**
 * Quotes a value from outside for a message. Escapes control, zero-width and bidirectional characters, so that the
 * value cannot forge a log line or reorder the text on a terminal. Shortens long values.
 */
export function quote(value: unknown): string {
  const text = typeof value === "string" ? value : (JSON.stringify(value) ?? String(value));
  const short = text.length > 80 ? `${text.slice(0, 77)}…` : text;
  return `"${short.replace(/["\\]/g, "\\$&").replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, escapeCharacter)}"`;
}

function escapeCharacter(character: string): string {
  return `\\u{${character.codePointAt(0)?.toString(16)}}`;
}

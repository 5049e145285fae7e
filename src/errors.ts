import { ERRORS, type FleetErrorCode } from "./errors/table.js";

export type { ErrorEntry } from "./errors/entry.js";
export { ERRORS, type FleetErrorCode } from "./errors/table.js";

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
    return ERRORS[this.code].retryable === true;
  }
}

/** Whether `error` is a {@link FleetError}. With `code`, it must have that code. */
export function isFleetError(error: unknown, code?: FleetErrorCode): error is FleetError {
  return error instanceof FleetError && (code === undefined || error.code === code);
}

export function fleetClosed(): FleetError {
  return new FleetError("FLEET_CLOSED", "This fleet is closed.", {
    suggestions: ["Open another one with Fleet.open(), or close this one later."],
  });
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

import type { Suggestion } from "./errors/entry.js";
import { ERRORS, type FleetErrorCode } from "./errors/table.js";

export type { ErrorEntry } from "./errors/entry.js";
export { fillIn, isCommand, type Placeholder, type Suggestion, withoutComment } from "./errors/entry.js";
export { ERRORS, type FleetErrorCode } from "./errors/table.js";
export { quote, quoteUpTo } from "./values/text.js";

export interface FleetErrorOptions {
  /** The next steps, the most useful one first. */
  suggestions?: readonly Suggestion[];
  /** The underlying error, kept for logs. */
  cause?: unknown;
  /** The work that was done before the call failed, under the names that it would have in the result. */
  outcome?: Readonly<Record<string, unknown>>;
  /** The limit that was reached: `connections` for the limit of one user, `total.connections` for that of all users. */
  limit?: string | undefined;
  /** The number of milliseconds after which the same call may succeed, if it is known. */
  retryAfterMs?: number | undefined;
  /**
   * False if the same call cannot succeed, although other errors with this code can pass. Default: that of the code.
   */
  retryable?: false;
}

/** These characters enclose an option in a message, and separate its name from its value. `quote()` escapes both. */
const MARK = "\u0001";
const SEPARATOR = "\u0002";

/** Returns the text that names an option of the failed call in a message. `value` is an example value, or empty. */
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

/** The texts of an error. */
export interface ErrorText {
  message: string;
  suggestions: Suggestion[];
}

const asOption: OptionNaming = (name, value) => (value === "" ? name : `${name}: ${JSON.stringify(value)}`);

/** An error that is part of the public contract. It has a stable code, a message for people, and the next steps. */
export class FleetError extends Error {
  override readonly name = "FleetError";
  readonly code: FleetErrorCode;
  readonly suggestions: readonly Suggestion[];
  readonly #text: ErrorText;
  readonly #options: FleetErrorOptions;
  /** The work that was done before the call failed, such as `{ deleted: ["a"] }`; empty if no work was done. */
  readonly outcome: Readonly<Record<string, unknown>>;
  /** The limit that was reached; undefined for other errors. */
  readonly limit: string | undefined;
  /** The number of milliseconds after which the same call may succeed; undefined if it is not known. */
  readonly retryAfterMs: number | undefined;
  /** Whether the same call, unchanged, may succeed soon. */
  readonly retryable: boolean;

  constructor(code: FleetErrorCode, message: string, options: FleetErrorOptions = {}) {
    super(nameOptions(message, asOption), options.cause === undefined ? {} : { cause: options.cause });
    this.code = code;
    this.#options = options;
    this.#text = { message, suggestions: [...(options.suggestions ?? [])] };
    this.suggestions = this.describe(asOption).suggestions;
    this.outcome = options.outcome ?? {};
    this.limit = options.limit;
    this.retryAfterMs = options.retryAfterMs;
    this.retryable = options.retryable ?? ERRORS[code].retryable;
  }

  /** Returns the message and the suggestions, with options named by `naming`. */
  describe(naming: OptionNaming): ErrorText {
    const { message, suggestions } = this.#text;
    return {
      message: nameOptions(message, naming),
      suggestions: suggestions.map((text) => nameOptions(text, naming) as Suggestion),
    };
  }

  /** Returns the same error with other texts. `change` gets texts in which options are still marked. */
  reworded(change: (text: ErrorText) => Partial<ErrorText>, outcome = this.outcome): FleetError {
    const { message, suggestions } = { ...this.#text, ...change(this.#text) };
    const error = new FleetError(this.code, message, { ...this.#options, suggestions, outcome });
    if (this.stack !== undefined) error.stack = this.stack;
    return error;
  }

  /** The exit code of the process, as the public contract defines it. */
  get exit(): number {
    return ERRORS[this.code].exit;
  }
}

/** Whether `error` is a {@link FleetError}. With `code`, it must have that code. */
export function isFleetError<Code extends FleetErrorCode>(
  error: unknown,
  code?: Code,
): error is FleetError & { readonly code: Code } {
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

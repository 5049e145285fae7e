import { abortable } from "../../base/clock.js";
import { isFleetError, type Suggestion } from "../../base/errors.js";

/** `warning`: there may be trouble later. `skipped`: this check was not made; its detail has the reason. */
export type CheckLevel = "ok" | "warning" | "failed" | "skipped";

/** The result of a check. */
export interface Check {
  name: string;
  /** False for `failed` and `skipped`. */
  ok: boolean;
  level: CheckLevel;
  /** The result of the check, as a sentence for the user. */
  detail: string;
  /** A text for each thing that the check found, such as a damaged record. Empty if the detail has everything. */
  items: readonly string[];
  /** The repair, as a command or a sentence. Null if nothing needs repair, or if there is no general advice. */
  fix: string | null;
  /** Whether `--fix` has just repaired the problem. */
  fixed: boolean;
}

/** The outcome of one check, before {@link Checks} adds its name. */
export interface Finding extends Pick<Check, "level" | "detail"> {
  items?: readonly string[];
  fix?: Suggestion | undefined;
  fixed?: boolean;
}

export const ok = (detail: string): Finding => ({ level: "ok", detail });
export const warning = (detail: string, fix?: Suggestion): Finding => ({ level: "warning", detail, fix });
export const failed = (detail: string, fix?: Suggestion): Finding => ({ level: "failed", detail, fix });
export const skipped = (reason: string): Finding => ({ level: "skipped", detail: `not checked, because ${reason}` });

export const CLOCK_ADVICE = "date  # then set the clock, or start its synchronization: timedatectl set-ntp true";

export interface Row<Context> {
  name: string;
  look: (context: Context) => Finding | Promise<Finding>;
  /** Whether the check starts a server or uses the network, so that `--quick` skips it. */
  isSlow?: true;
  /**
   * Whether the check itself ends its processes when the signal aborts. {@link Checks} then waits until the check has
   * ended.
   */
  cleansUp?: true;
}

const PROBLEM_EXIT = 3;

export interface ChecksOptions {
  /** Skip slow checks. */
  quick: boolean;
  /** When it aborts, the current check ends, and {@link Checks.run} rejects with the signal's reason. */
  signal: AbortSignal;
  /** Called with the name of each check when it begins. */
  onCheck?: ((name: string) => void) | undefined;
}

/** The results of the checks so far. */
export class Checks {
  readonly all: Check[] = [];
  /** The exit code for the first failed check, as the public contract defines it; 0 if none has failed. */
  exit = 0;
  readonly #options: ChecksOptions;

  constructor(options: ChecksOptions) {
    this.#options = options;
  }

  /** Runs checks, one after the other. A check that throws has failed. */
  async run<Context>(rows: readonly Row<Context>[], context: Context): Promise<void> {
    const { signal } = this.#options;
    for (const { name, look, isSlow = false, cleansUp = false } of rows) {
      signal.throwIfAborted();
      if (isSlow && this.#options.quick) {
        this.#add(name, skipped("--quick skips checks that start a server or use the network"));
        continue;
      }
      this.#options.onCheck?.(name);
      try {
        const finding = (async () => await look(context))();
        this.#add(name, await (cleansUp ? finding : abortable(finding, signal)));
      } catch (error) {
        signal.throwIfAborted();
        const finding = failed(error instanceof Error ? error.message : String(error));
        if (isFleetError(error)) finding.fix = adviceOf(error.suggestions);
        this.#add(name, finding, isFleetError(error) ? error.exit : PROBLEM_EXIT);
      }
    }
  }

  /** Reports these checks as skipped, because the check with the name `because` failed. */
  skip(rows: readonly { name: string }[], because: string): void {
    for (const { name } of rows) this.#add(name, skipped(`the check "${because}" failed`));
  }

  /** Whether the check was run and has not failed, possibly with a warning. */
  passed(name: string): boolean {
    return this.all.some((check) => check.name === name && check.ok);
  }

  #add(name: string, { level, detail, items = [], fix, fixed = false }: Finding, exit = PROBLEM_EXIT): void {
    const isOk = level === "ok" || level === "warning";
    this.all.push({ name, ok: isOk, level, detail, items, fix: level === "ok" ? null : (fix ?? null), fixed });
    if (level === "failed" && this.exit === 0) this.exit = exit;
  }
}

/**
 * Returns the first suggestion that neither runs `doctor` again nor shows a file with `cat`; undefined if there is
 * none.
 */
export function adviceOf(suggestions: readonly Suggestion[]): Suggestion | undefined {
  return suggestions.find((suggestion) => !/^cat |copilotfleet doctor/.test(suggestion));
}

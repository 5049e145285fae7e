import { isFleetError, type Suggestion } from "../../errors.js";

/** `warning`: there may be trouble later. `skipped`: this check needs another one that failed. */
export type CheckLevel = "ok" | "warning" | "failed" | "skipped";

/** The result of a check. */
export interface Check {
  name: string;
  /** False for `failed` and `skipped`. */
  ok: boolean;
  level: CheckLevel;
  /** The result of the check, as a sentence for the user. */
  detail: string;
  /** The repair, as a command or a sentence. Null if nothing needs repair, or if there is no general advice. */
  fix: string | null;
  /** Whether `--fix` has just repaired it. */
  fixed: boolean;
}

/** The outcome of one check, before {@link Checks} adds its name. */
export interface Finding {
  level: Exclude<CheckLevel, "skipped">;
  detail: string;
  fix?: Suggestion | undefined;
  fixed?: boolean;
}

export const ok = (detail: string): Finding => ({ level: "ok", detail });
export const warning = (detail: string, fix?: Suggestion): Finding => ({ level: "warning", detail, fix });
export const failed = (detail: string, fix?: Suggestion): Finding => ({ level: "failed", detail, fix });

export interface Row<Context> {
  name: string;
  look: (context: Context) => Finding | Promise<Finding>;
}

const PROBLEM_EXIT = 3;

/** The results of the checks so far. */
export class Checks {
  readonly all: Check[] = [];
  /** The exit code of the first failed check in the public contract; 0 if none has failed. */
  exit = 0;
  readonly #onCheck: ((name: string) => void) | undefined;

  /** @param onCheck called with the name of each check when it begins */
  constructor(onCheck?: (name: string) => void) {
    this.#onCheck = onCheck;
  }

  /** Runs checks, one after the other. A check that throws has failed. */
  async run<Context>(rows: readonly Row<Context>[], context: Context): Promise<void> {
    for (const { name, look } of rows) {
      this.#onCheck?.(name);
      let finding: Finding;
      let exit = PROBLEM_EXIT;
      try {
        finding = await look(context);
      } catch (error) {
        finding = failed(error instanceof Error ? error.message : String(error));
        if (isFleetError(error)) {
          exit = error.exit;
          finding.fix = adviceOf(error.suggestions);
        }
      }
      const { level, detail, fix = null, fixed = false } = finding;
      this.all.push({ name, ok: level !== "failed", level, detail, fix: level === "ok" ? null : fix, fixed });
      if (level === "failed" && this.exit === 0) this.exit = exit;
    }
  }

  /** Lists checks as skipped, because the check `because` failed. */
  skip(rows: readonly { name: string }[], because: string): void {
    const detail = `not checked, because the check "${because}" failed`;
    for (const { name } of rows) this.all.push({ name, ok: false, level: "skipped", detail, fix: null, fixed: false });
  }

  /** Whether the check was run and has not failed, possibly with a warning. */
  passed(name: string): boolean {
    return this.all.some((check) => check.name === name && check.ok);
  }
}

/** Returns the first suggestion that does not send the user back to this command. */
export function adviceOf(suggestions: readonly Suggestion[]): Suggestion | undefined {
  return suggestions.find((suggestion) => !suggestion.includes("copilotfleet doctor"));
}

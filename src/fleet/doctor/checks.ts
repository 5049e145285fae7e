import { abortable } from "../../base/clock.js";
import { isFleetError, type Suggestion } from "../../base/errors.js";
import type { LoadedConfig } from "../../config/load/load.js";
import type { FleetParts } from "../parts.js";

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

type Items = readonly string[];

export const ok = (detail: string, items: Items = []): Finding => ({ level: "ok", detail, items });
export const warning = (detail: string, fix?: Suggestion, items: Items = []): Finding => {
  return { level: "warning", detail, fix, items };
};
export const failed = (detail: string, fix?: Suggestion, items: Items = []): Finding => {
  return { level: "failed", detail, fix, items };
};
/** The problem was repaired, because of `--fix`. */
export const mended = (detail: string, items: Items = []): Finding => ({ level: "ok", detail, items, fixed: true });
const skipped = (reason: string): Finding => ({ level: "skipped", detail: `not checked, because ${reason}` });

export const CLOCK_ADVICE = "date  # then set the clock, or start its synchronization: timedatectl set-ntp true";

export interface DoctorOptions {
  env: NodeJS.ProcessEnv;
  cwd: string;
  /** The configuration file that the user named with `--config`. */
  configFile?: string;
  /** Repair what can be repaired without losing anything. */
  fix: boolean;
  /** Let servers start in the sandbox that works now, even if it is weaker than the one of the last start. */
  acceptWeakerSandbox: boolean;
  /** Skip checks that start a server or use the network, except for the store. */
  quick: boolean;
  /** When it aborts, the current check ends, and the examination rejects with the signal's reason. */
  signal: AbortSignal;
  /** Called with the name of each check when it begins. */
  onCheck?: (name: string) => void;
}

/**
 * The options, the configuration and the parts of the examined fleet. The configuration exists after the check
 * "configuration", the parts after "state folder".
 */
export interface Context extends DoctorOptions, LoadedConfig {
  parts: FleetParts;
}

export interface Row {
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

/** The results of the checks so far. */
export class Checks {
  readonly all: Check[] = [];
  /** The exit code for the first failed check, as the public contract defines it; 0 if none has failed. */
  exit = 0;
  readonly #context: Context;
  /** For each check that was skipped because of another one: the check that failed. */
  readonly #causes = new Map<string, string>();

  constructor(context: Context) {
    this.#context = context;
  }

  /**
   * Runs checks, one after the other. A check that throws has failed.
   *
   * @param needed the check without which these cannot be made
   */
  async run(rows: readonly Row[], needed?: string): Promise<void> {
    const { signal, quick, onCheck } = this.#context;
    for (const { name, look, isSlow = false, cleansUp = false } of rows) {
      signal.throwIfAborted();
      if (needed !== undefined && !this.all.some((check) => check.name === needed && check.ok)) {
        const cause = this.#causes.get(needed) ?? needed;
        this.#causes.set(name, cause);
        this.#add(name, skipped(`the check "${cause}" failed`));
        continue;
      }
      if (isSlow && quick) {
        this.#add(name, skipped("--quick skips checks that start a server or use the network"));
        continue;
      }
      onCheck?.(name);
      try {
        const finding = (async () => await look(this.#context))();
        this.#add(name, await (cleansUp ? finding : abortable(finding, signal)));
      } catch (error) {
        signal.throwIfAborted();
        const finding = failed(error instanceof Error ? error.message : String(error));
        if (isFleetError(error)) finding.fix = adviceOf(error.suggestions);
        this.#add(name, finding, isFleetError(error) ? error.exit : PROBLEM_EXIT);
      }
    }
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

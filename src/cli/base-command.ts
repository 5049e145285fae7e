import { Command, Errors, Flags, type Interfaces } from "@oclif/core";
import { type FleetError, isFleetError } from "../base/errors.js";
import { printableJson } from "../base/values/text.js";
import { Fleet } from "../fleet/fleet.js";
import type { FleetOptions } from "../hosts/options.js";
import { spoken } from "./command-id.js";
import { ProgressLine } from "./progress.js";
import { handleClosedOutput, Interrupted, onSignals } from "./prompt.js";
import { type Given, givenIn, withGiven } from "./report.js";
import { usageError } from "./usage-error.js";

/** The base flags of a command that does not read the configuration. */
export const FLAGS_WITHOUT_CONFIG: Interfaces.FlagInput = {
  // `colour.ts` reads this flag before flags are parsed, so that parse errors have no colour either.
  "no-color": Flags.boolean({ description: "print without colours", helpGroup: "GLOBAL" }),
};

/** Commands that only show state. They add no event to the audit log, because scripts call them again and again. */
const LOOKS: ReadonlySet<string> = new Set(
  `describe doctor events events:verify limit:show list logs ps route smoke token:list top user:list usage`.split(" "),
);

/**
 * The base of all commands. A command parses its input, calls the fleet and renders the result. The value that `run`
 * returns is its `--json` output. `report.ts` shows every error.
 */
export abstract class FleetCommand extends Command {
  static override enableJsonFlag = true;
  static override baseFlags: Interfaces.FlagInput = {
    config: Flags.string({
      description: "configuration file to read instead of the project's .copilotfleet.json",
      helpValue: "FILE",
      helpGroup: "GLOBAL",
    }),
    ...FLAGS_WITHOUT_CONFIG,
  };

  protected configSource: Pick<FleetOptions, "configFile" | "config"> = {};
  protected given: Given = {};
  #user: string | undefined;
  #isDryRun = false;
  #interrupt: AbortController | undefined;
  #progress: ProgressLine | undefined;

  /** Opens the fleet, runs `use`, and closes the fleet again. Prints the fleet's warnings on standard error. */
  protected async withFleet<T>(use: (fleet: Fleet) => Promise<T>): Promise<T> {
    const fleet = await Fleet.open({ ...this.configSource, via: "command" });
    try {
      const result = await use(fleet);
      await this.#noteRun(fleet, undefined);
      return result;
    } catch (error) {
      await this.#noteRun(fleet, error);
      throw error;
    } finally {
      for (const warning of fleet.takeWarnings()) process.stderr.write(`Warning: ${warning}\n`);
      await fleet.close();
    }
  }

  /** Runs one operation of the fleet. Shows its progress as `what`, and prints the text of its result. */
  protected async act<T>(
    what: string,
    operation: (fleet: Fleet, onProgress: ProgressLine["report"]) => Promise<T>,
    textOf: (result: T) => string,
  ): Promise<T> {
    return await this.withFleet(async (fleet) => {
      using progress = this.progress(what);
      const result = await operation(fleet, progress.report);
      this.log(textOf(result));
      return result;
    });
  }

  /** Records in the audit log that this command ran, with the error if it failed. */
  async #noteRun(fleet: Fleet, error: unknown): Promise<void> {
    const id = this.ctor.id;
    if (LOOKS.has(id) || this.#isDryRun) return;
    // Exit codes 2 to 5 mean that the fleet refused the request, so the command changed nothing.
    if (isFleetError(error) && error.exit >= 2 && error.exit <= 5) return;
    const user = this.#user === undefined ? {} : { user: this.#user };
    await fleet.events.ran(spoken(id), error === undefined ? user : { ...user, error });
  }

  protected override async parse<
    F extends Interfaces.OutputFlags<Interfaces.FlagInput>,
    B extends Interfaces.OutputFlags<Interfaces.FlagInput>,
    A extends Interfaces.OutputArgs<Interfaces.ArgInput>,
  >(options?: Interfaces.Input<F, B, A>, argv?: string[]): Promise<Interfaces.ParserOutput<F, B, A>> {
    const parsed = await super.parse(options, argv);
    this.given = givenIn(parsed, this.ctor);
    const { config: file, user, "dry-run": isDryRun }: Record<string, unknown> = parsed.flags;
    this.#isDryRun = isDryRun === true;
    if (typeof user === "string") this.#user = user;
    if (typeof file === "string") this.configSource = { configFile: file };
    return parsed;
  }

  /**
   * Returns an AbortSignal that the first SIGINT or SIGTERM aborts, so that the command can finish what it began. The
   * second one ends the process at once. In a command that never calls this method, the first one does so.
   *
   * @param cleansUp whether the command must clean up before it ends. If so, a closed output pipe also aborts the
   * AbortSignal. If not, a closed output pipe ends the process at once.
   */
  protected interruptSignal({ cleansUp = false } = {}): AbortSignal {
    if (this.#interrupt !== undefined) return this.#interrupt.signal;
    const controller = new AbortController();
    this.#interrupt = controller;
    onSignals(["SIGINT", "SIGTERM"], (name) => {
      const interrupted = new Interrupted(name);
      if (controller.signal.aborted) process.exit(interrupted.exitCode);
      controller.abort(interrupted);
    });
    if (cleansUp) handleClosedOutput(() => controller.abort(new Interrupted("SIGPIPE")));
    return controller.signal;
  }

  /**
   * Shows a line on a terminal if the operation `what` takes more than a second. The line disappears when the returned
   * object is disposed, or when the command prints its result. Pass the object's `report` to the operation.
   *
   * @param signal the signal that Ctrl-C aborts; by default that of {@link interruptSignal}, if the command uses it
   */
  protected progress(what: string, signal: AbortSignal | undefined = this.#interrupt?.signal): ProgressLine {
    this.#progress?.end();
    this.#progress = new ProgressLine(what, { json: this.jsonEnabled(), signal });
    return this.#progress;
  }

  override log(message?: string): void {
    this.#progress?.end();
    super.log(message);
  }

  protected override logJson(json: unknown): void {
    process.stdout.write(`${printableJson(json, 2)}\n`);
  }

  protected override async catch(error: Error): Promise<never> {
    // If the user interrupted the command, report the interruption, because the error is only its consequence.
    if (this.#interrupt?.signal.aborted === true) throw this.#interrupt.signal.reason;
    const isOfOclif = error instanceof Errors.CLIError && !(error instanceof Errors.ExitError);
    if (isOfOclif) throw usageError(error, this.ctor);
    throw isFleetError(error) ? this.#withHelp(withGiven(error, this.given)) : error;
  }

  /** Suggests the help of this command if the error is about wrong usage and has no suggestion. */
  #withHelp(error: FleetError): FleetError {
    if (error.exit !== 2 || error.suggestions.length > 0) return error;
    return error.reworded(() => ({ suggestions: [`copilotfleet ${spoken(this.ctor.id)} --help`] }));
  }
}

import { Command, Flags, type Interfaces } from "@oclif/core";
import { Fleet } from "../fleet.js";
import { Interrupted } from "./interrupted.js";

/**
 * What all commands share: `--json`, the fleet of this configuration, and one way for errors to leave (`report.ts`).
 * A command parses, calls the fleet, renders; what it returns is its `--json`.
 */
export abstract class FleetCommand extends Command {
  static override enableJsonFlag = true;
  static override baseFlags: Interfaces.FlagInput = {
    config: Flags.string({
      description: "configuration file to read instead of the project's .copilotfleet.json",
      helpValue: "FILE",
    }),
    // Read in `colour.ts`, before flags are parsed: errors in them have no colour either.
    "no-color": Flags.boolean({ description: "print without colours", helpGroup: "GLOBAL" }),
  };

  /** Where the configuration comes from, as the library takes it: the file that `--config` names. */
  protected configSource: { configFile?: string } = {};
  #interrupt: AbortController | undefined;

  /** Opens the fleet for the length of `use`. */
  protected async withFleet<T>(use: (fleet: Fleet) => Promise<T>): Promise<T> {
    const fleet = await Fleet.open(this.configSource);
    try {
      return await use(fleet);
    } finally {
      for (const warning of fleet.takeWarnings()) process.stderr.write(`Warning: ${warning}\n`);
      await fleet.close();
    }
  }

  protected override async parse<
    F extends Interfaces.OutputFlags<Interfaces.FlagInput>,
    B extends Interfaces.OutputFlags<Interfaces.FlagInput>,
    A extends Interfaces.OutputArgs<Interfaces.ArgInput>,
  >(options?: Interfaces.Input<F, B, A>, argv?: string[]): Promise<Interfaces.ParserOutput<F, B, A>> {
    const parsed = await super.parse(options, argv);
    const file: unknown = parsed.flags.config;
    if (typeof file === "string") this.configSource = { configFile: file };
    return parsed;
  }

  /**
   * Aborted by the first SIGINT or SIGTERM, so that a command can end what it began. The second one, or a command that
   * never asked for this signal, ends the process at once. The exit code is the signal's either way.
   */
  protected interruptSignal(): AbortSignal {
    if (this.#interrupt !== undefined) return this.#interrupt.signal;
    const controller = new AbortController();
    this.#interrupt = controller;
    for (const [name, exitCode] of [
      ["SIGINT", 130],
      ["SIGTERM", 143],
    ] as const) {
      process.on(name, () => {
        if (controller.signal.aborted) process.exit(exitCode);
        controller.abort(new Interrupted(exitCode));
      });
    }
    return controller.signal;
  }

  /** Errors are rendered in one place, for every command and for oclif's own: see `report.ts`. */
  protected override async catch(error: Error): Promise<never> {
    // Whatever an interrupted command failed with, it failed since it was interrupted.
    if (this.#interrupt?.signal.aborted === true) throw this.#interrupt.signal.reason;
    throw error;
  }
}

import { Command } from "@oclif/core";
import { Fleet } from "../fleet.js";
import { Interrupted } from "./interrupted.js";

/**
 * What all commands share: `--json`, the fleet of this configuration, and one way for errors to leave (`report.ts`).
 * A command parses, calls the fleet, renders; what it returns is its `--json`.
 */
export abstract class FleetCommand extends Command {
  static override enableJsonFlag = true;

  #interrupt: AbortController | undefined;

  /** Opens the fleet for the length of `use`. */
  protected async withFleet<T>(use: (fleet: Fleet) => Promise<T>): Promise<T> {
    const fleet = await Fleet.open();
    try {
      return await use(fleet);
    } finally {
      for (const warning of fleet.takeWarnings()) process.stderr.write(`Warning: ${warning}\n`);
      await fleet.close();
    }
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

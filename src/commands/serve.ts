import { Flags } from "@oclif/core";
import { FleetCommand } from "../cli/base-command.js";
import { durationFlag } from "../cli/flags.js";
import { exitCodeOfServe, runServe, type Served } from "../cli/serve.js";
import { renderStopped } from "../cli/stopped.js";

export default class Serve extends FleetCommand {
  static override summary = "Keep the pool healthy: restart, adopt, recycle, collect garbage, and tell how it is.";
  static override description =
    "SIGTERM drains: nothing new is admitted, turns in flight end, every server is stopped; a second one forces. " +
    "Exits with 8 when a turn had to be cut. Logs go to standard error.";
  static override examples = ["<%= config.bin %> serve", "<%= config.bin %> serve --leave-running"];
  static override flags = {
    "drain-timeout": durationFlag("drain-timeout", "how long turns in flight may take to end (default: drain.timeout)"),
    "leave-running": Flags.boolean({ description: "at the end leave the servers to the next supervisor, as they are" }),
  };

  async run(): Promise<Served> {
    const { flags } = await this.parse(Serve);
    return await this.withFleet(async (fleet) => {
      const served = await runServe(fleet, {
        drainTimeoutMs: flags["drain-timeout"] ?? fleet.config.drain.timeoutMs,
        leaveRunning: flags["leave-running"] === true,
        ready: (line) => this.log(line),
      });
      this.log(served.leftRunning ? "The servers go on without a supervisor." : renderStopped(served.stopped));
      process.exitCode = exitCodeOfServe(served);
      return served;
    });
  }
}

import { Flags } from "@oclif/core";
import type { Stopped } from "../../servers/stop.js";
import { FleetCommand } from "../base-command.js";
import { durationFlag, usage } from "../flags/flags.js";
import { selectionArgs, selectServers } from "../flags/select-servers.js";
import { exitCodeOf, renderStopped } from "../render/results.js";

export default class Drain extends FleetCommand {
  static override summary =
    "Close the pool or some servers to new turns, wait for turns in flight, then stop the servers.";
  static override description =
    "Made for the preStop hook of a container. Without SERVER it drains the whole pool, which stays closed until `serve` " +
    "starts or `drain --undo` runs. Exits with 8 when a turn had to be cut, and lists the sessions.";
  static override examples = ["<%= config.bin %> drain --drain-timeout 2m", "<%= config.bin %> drain --undo"];
  static override strict = false;
  static override args = selectionArgs;
  static override flags = {
    "drain-timeout": durationFlag("drain-timeout", "how long to wait for turns in flight (default: drain.timeout)"),
    undo: Flags.boolean({ description: "open the pool again" }),
  };

  async run(): Promise<{ stopped: Stopped[] }> {
    const { flags, argv } = await this.parse(Drain);
    const names = argv as string[];
    if (flags.undo && (names.length > 0 || flags["drain-timeout"] !== undefined))
      throw usage("--undo opens the whole pool. It cannot be combined with other flags or servers.", [
        "copilotfleet drain --undo",
      ]);
    return await this.withFleet(async (fleet) => {
      if (flags.undo) {
        await fleet.pool.undrain();
        this.log("The pool takes new servers and turns again.");
        return { stopped: [] };
      }
      const drainTimeout = flags["drain-timeout"] ?? fleet.config.drain.timeoutMs;
      const signal = this.interruptSignal();
      using progress = this.progress("Draining servers");
      const request = { drainTimeout, signal, onProgress: progress.report };
      const result =
        names.length === 0
          ? await fleet.pool.drain(request)
          : await fleet.servers.stop((await selectServers(fleet, names)).ids, request);
      this.log(renderStopped(result.stopped));
      if (names.length === 0) this.log("The pool is closed. Open it again: copilotfleet drain --undo");
      process.exitCode = exitCodeOf(result.stopped);
      return result;
    });
  }
}
